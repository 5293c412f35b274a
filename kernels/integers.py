"""Arithmetic of launches: Triton's own costs the host two microseconds a call, as it can run in kernels too."""

from __future__ import annotations


def cdiv(a: int, b: int) -> int:
    """a over b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def tile_width(n: int) -> int:
    """The same, and not below what a tensor core takes."""
    return max(16, next_power_of_2(n))
