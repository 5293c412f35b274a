"""What several models share: trunks, heads, layers."""
