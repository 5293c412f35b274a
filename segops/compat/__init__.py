"""Drop-in replacements for libraries that no longer build or run: change the import line, keep the script."""
