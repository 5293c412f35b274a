"""The product of two tiles, as all kernels that sum in float32 or float64 take it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Triton's interpreter holds bfloat16 as integers, and would multiply these.
WIDEN = tl.constexpr(triton.knobs.runtime.interpret)


def precision() -> str:
    """How attention multiplies float32: in TF32 where torch's own products of matrices may, else split into three."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


@triton.jit
def product(a, b):
    """a (I, K) times b (K, J) in the precision of the sums."""
    if a.dtype == tl.float64:
        out = tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    elif WIDEN:
        out = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")
    else:
        out = tl.dot(a, b, input_precision="tf32x3")
    return out


@triton.jit
def mixed_product(a, b):
    """a (I, K) of a map's dtype times b (K, J) of that of sums. b is rounded to bfloat16 where a is that, whose range
    is float32's; float16, whose range is not, is widened."""
    if a.dtype == tl.float16:
        a = a.to(tl.float32)
    return product(a, b.to(a.dtype))


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """total (I, J) and a (I, K) times b (K, J); PRECISION is float32's, "tf32" or "tf32x3"."""
    if a.dtype == tl.float64:
        total += tl.sum(a[:, :, None] * b[None, :, :], axis=1)
    elif WIDEN:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total
