"""The softmax of kernels that assign pixels softly to bases or codewords."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softmax(s, p, k, pixels, count):
    """s (pixels, choices) over the choices; 0 for what is no choice or no pixel."""
    s = tl.where((k < count)[None, :], s, float("-inf"))
    z = tl.exp(s - tl.max(s, axis=1)[:, None])
    z = z / tl.sum(z, axis=1)[:, None]
    return tl.where((p < pixels)[:, None], z, 0.0)
