"""One step of PointRend's subdivision on a GPU: the larger map and its margins in one pass, then a stable sort.

Idea. A program makes a block of cells of the new map: for each channel four loads, which mostly hit the cache since
four cells share them, the bilinear sum with weights 9, 3, 3 and 1 sixteenths, a store, and the two largest logits in
registers. So the large map is written once and not read again.

Memory. Logits are read in whatever layout they have; the new map and its margins are written once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.topk_uncertain_grid import centres, margin, most_uncertain, rank
from torch import Tensor


@triton.jit
def neighbours(cell, size):
    """Of a cell of the new map along one axis: the nearest of the old ones, and the other that it lies between."""
    nearest = cell // 2
    other = nearest + cell % 2 * 2 - 1
    return nearest, tl.minimum(tl.maximum(other, 0), size - 1)


@triton.jit
def upsample_kernel(
    logits, larger, out, cells, height, width, blocks, channels, stride_n, stride_c, stride_h, stride_w,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK cells of larger (N, C, 2 H, 2 W) and their margins to out (N, 4 H W)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < cells
    row, other_row = neighbours(cell // (2 * width), height)
    column, other_column = neighbours(cell % (2 * width), width)
    logits += item * stride_n
    row, other_row = row * stride_h, other_row * stride_h
    column, other_column = column * stride_w, other_column * stride_w
    larger += item * channels * cells + cell
    first = tl.full([BLOCK], float("-inf"), logits.dtype.element_ty)
    second = first
    for _ in range(channels):
        near = tl.load(logits + row + column, mask=inside, other=0.0) * 0.75
        near += tl.load(logits + other_row + column, mask=inside, other=0.0) * 0.25
        far = tl.load(logits + row + other_column, mask=inside, other=0.0) * 0.75
        far += tl.load(logits + other_row + other_column, mask=inside, other=0.0) * 0.25
        value = 0.75 * near + 0.25 * far
        tl.store(larger, value, mask=inside)
        first, second = rank(value, first, second)
        logits += stride_c
        larger += cells
    tl.store(out + item * cells + cell, margin(first, second, channels), mask=inside)


def subdivide(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, C, H, W) to the map (N, C, 2 H, 2 W), indices (N, k) and points (N, k, 2)."""
    n, channels, height, width = logits.shape
    cells = 4 * height * width
    larger = logits.new_empty((n, channels, 2 * height, 2 * width))
    margins = logits.new_empty((n, cells))
    if n > 0:
        blocks = cdiv(cells, 256)
        upsample_kernel[(n * blocks,)](
            logits, larger, margins, cells, height, width, blocks, channels, *logits.stride(), BLOCK=256
        )
    indices = most_uncertain(margins, k)
    return larger, indices, centres(indices, 2 * height, 2 * width, logits.dtype)


AOT = [(upsample_kernel, {"logits": "*T", "larger": "*T", "out": "*T"}, [{"BLOCK": 256}])]
