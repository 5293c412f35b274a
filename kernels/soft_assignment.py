"""What kernels share that assign pixels softly to bases or codewords: products of tiles, the softmax over choices."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b):
    """a (I, K) times b (K, J) in the precision of the sums."""
    if a.dtype == tl.float64:
        out = tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    else:
        out = tl.dot(a, b, input_precision="tf32x3")
    return out


@triton.jit
def softmax(s, p, k, pixels, count):
    """s (pixels, choices) over the choices; 0 for what is no choice or no pixel."""
    s = tl.where((k < count)[None, :], s, float("-inf"))
    z = tl.exp(s - tl.max(s, axis=1)[:, None])
    z = z / tl.sum(z, axis=1)[:, None]
    return tl.where((p < pixels)[:, None], z, 0.0)
