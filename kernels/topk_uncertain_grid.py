"""The most uncertain cells of a map of logits on a GPU: margins in one pass, then torch's stable sort of them.

Idea. A program keeps the two largest logits of a block of cells in registers while the channels pass, and writes their
margin. The k smallest come from a stable sort, since torch.topk does not say which of equal margins it takes.

Memory. Logits are read once, in whatever layout they have; margins, one for each cell, are written and sorted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor


@triton.jit
def rank(x, first, second):
    """The two largest so far, with one more; a NaN stays in ``first``."""
    lower = tl.where(x < first, x, first)
    higher = tl.where(x > first, x, first)
    return tl.where(x == x, higher, x), tl.where(lower > second, lower, second)


@triton.jit
def margin(first, second, channels):
    """top1 - top2, or the distance from 0 of one channel alone; infinite where that is NaN."""
    apart = tl.where(channels == 1, tl.abs(first), first - second)
    return tl.where(apart == apart, apart, float("inf"))


@triton.jit
def margins_kernel(
    logits, out, cells, width, blocks, channels, stride_n, stride_c, stride_h, stride_w, BLOCK: tl.constexpr
):
    """Margins of BLOCK cells to out (N, H W)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < cells
    logits += item * stride_n + cell // width * stride_h + cell % width * stride_w
    first = tl.full([BLOCK], float("-inf"), logits.dtype.element_ty)
    second = first
    for _ in range(channels):
        first, second = rank(tl.load(logits, mask=inside, other=0.0), first, second)
        logits += stride_c
    tl.store(out + item * cells + cell, margin(first, second, channels), mask=inside)


def most_uncertain(margins: Tensor, k: int) -> Tensor:
    """margins (N, P) to the places of the k smallest, ascending, ties by the lower place."""
    return margins.sort(dim=1, stable=True).indices[:, :k].contiguous()


def centres(indices: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Flat indices (N, k) to (x, y) in units of width and height."""
    x, y = indices % width, indices.div(width, rounding_mode="floor")
    return torch.stack([(x.to(dtype) + 0.5) / width, (y.to(dtype) + 0.5) / height], -1)


def topk_uncertain_grid(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """logits (N, C, H, W) to indices (N, k) and points (N, k, 2)."""
    n, channels, height, width = logits.shape
    margins = logits.new_empty((n, height * width))
    if n > 0:
        blocks = cdiv(height * width, 512)
        margins_kernel[(n * blocks,)](
            logits, margins, height * width, width, blocks, channels, *logits.stride(), BLOCK=512
        )
    indices = most_uncertain(margins, k)
    return indices, centres(indices, height, width, logits.dtype)


AOT = [(margins_kernel, {"logits": "*T", "out": "*T"}, [{"BLOCK": 512}])]
