"""Maps whose channels lie side by side, for kernels that multiply positions with positions.

Positions seldom come in multiples that a wide load could use, and neighbours in a column lie a row apart: copied with
their channels side by side, padded to a multiple of 16, both are read in wide pieces.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.tile_product import add_product
from torch import Tensor

LOWEST = tl.constexpr(-3e38)  # a largest energy before any came; infinite, its distance to another would be no number


def last(x: Tensor) -> Tensor:
    """(N, C, ...) to (N, ..., C), C padded with zeros; a map that lies so already is not copied."""
    channels = x.shape[1]
    x = x.movedim(1, -1)
    if channels % 16 == 0:
        return x.contiguous()
    out = x.new_zeros(*x.shape[:-1], cdiv(channels, 16) * 16)
    out[..., :channels] = x
    return out


def inner(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums of a times b over the channels, (N, C, ...) to (N, ...): the products in dtype, without copies in it."""
    return torch.addcmul(a.new_zeros(1, dtype=dtype), a, b).sum(1).contiguous()


@triton.jit
def load_tile(x, i, c, length, stride, step=1):
    """Positions i, step apart, of x (length, stride) in channels c, zeros outside; transposed where c is the column."""
    return tl.load(x + i.to(tl.int64) * step * stride + c, mask=(i < length) & (c < stride), other=0.0)


@triton.jit
def store_tile(out, tile, i, c, length, channels, plane):
    """A tile (I, C), in the dtype of out, to positions i of a line of out (channels, plane)."""
    pointers = out + c.to(tl.int64)[None, :] * plane + i[:, None]
    tl.store(pointers, tile.to(out.dtype.element_ty), mask=(i < length)[:, None] & (c < channels)[None, :])


@triton.jit
def scalar_products(
    x, own, other, i, j, own_length, other_length, stride,
    WHOLE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, step=1,
):  # fmt: skip
    """own (own_length, stride) at i times other at j, over all channels; x is own in the first DEPTH of them, and WHOLE
    says that there are no more."""
    first = tl.arange(0, DEPTH)
    real = tl.float64 if x.dtype == tl.float64 else tl.float32
    total = tl.zeros([i.shape[0], j.shape[0]], real)
    total = add_product(total, x, load_tile(other, j[None, :], first[:, None], other_length, stride, step), PRECISION)
    if not WHOLE:
        for begin in range(DEPTH, stride, DEPTH):
            c = begin + first
            y = load_tile(other, j[None, :], c[:, None], other_length, stride, step)
            total = add_product(total, load_tile(own, i[:, None], c[None, :], own_length, stride, step), y, PRECISION)
    return total
