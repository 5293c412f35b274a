"""The largest class of up-sampled logits on a GPU: a program interpolates the classes of a block of pixels in turn.

Idea. The four cells that neighbouring pixels need are mostly the same, so the loads come from the nearest cache, and
what crosses the memory bus is the low resolution and the labels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.bilinear import axis, load_cells, pixels_of
from segops.kernels.integers import cdiv
from torch import Tensor

BLOCK = 128  # pixels of a program


@triton.jit
def argmax_kernel(
    input, row_cell, row_fraction, column_cell, column_fraction, out, height, width, rows, columns, blocks, channels,
    stride_n, stride_c, stride_h, stride_w, BLOCK: tl.constexpr,
):  # fmt: skip
    item, pixel, inside, place, step_down, step_right, down, right = pixels_of(
        row_cell, row_fraction, column_cell, column_fraction, height, width, rows, columns, blocks, stride_h, stride_w,
        BLOCK,
    )  # fmt: skip
    input += item * stride_n + place
    best = tl.full([BLOCK], -float("inf"), input.dtype.element_ty)
    label = tl.zeros([BLOCK], tl.int32)
    for c in tl.range(0, channels, loop_unroll_factor=4):
        x = load_cells(input, step_down, step_right, down, right, inside)
        better = (x > best) | ((x != x) & (best == best))
        best, label = tl.where(better, x, best), tl.where(better, c, label)
        input += stride_c
    tl.store(out + pixel, label.to(out.dtype.element_ty), mask=inside)


def upsample_argmax(input: Tensor, height: int, width: int, align_corners: bool, narrow: bool) -> Tensor:
    """input (N, C, h, w) to labels (N, height, width)."""
    n, channels, rows, columns = input.shape
    out = input.new_empty(n, height, width, dtype=torch.uint8 if narrow else torch.int64)
    if out.numel():
        blocks = cdiv(width, BLOCK)
        tables = *axis(rows, height, align_corners, input), *axis(columns, width, align_corners, input)
        argmax_kernel[(n * height * blocks,)](
            input, *tables, out, height, width, rows, columns, blocks, channels, *input.stride(), BLOCK=BLOCK
        )
    return out


AOT = [
    (
        argmax_kernel,
        {
            **dict.fromkeys(("input", "row_fraction", "column_fraction"), "*T"),
            **dict.fromkeys(("row_cell", "column_cell"), "*i32"),
            "out": out,
        },
        [{"BLOCK": BLOCK}],
    )
    for out in ("*u8", "*i64")
]
