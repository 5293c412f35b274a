"""Where kernels that up-sample find their values, as in torch.nn.functional.interpolate without antialiasing."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor

BLOCK = 256  # positions of a program


class Axis(NamedTuple):
    """Rows, or columns: position i is (1 - fraction[i]) of cell[i] and fraction[i] of the next cell."""

    cell: Tensor
    fraction: Tensor


@triton.jit
def axis_kernel(cell, fraction, cells, size, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """An `Axis` of ``size`` positions."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.float64)  # makes tensors of integers, of which Triton makes constants where they are 1
    last = zero + (cells - 1)
    if ALIGN:
        at = (zero + i) * (last / tl.maximum(zero + (size - 1), 1.0))
    else:
        at = tl.maximum((zero + i + 0.5) * ((zero + cells) / (zero + size)) - 0.5, 0.0)
    low = tl.minimum(tl.floor(at), last)
    tl.store(cell + i, low.to(tl.int32), mask=i < size)
    tl.store(fraction + i, tl.where(low == last, 0.0, at - low).to(fraction.dtype.element_ty), mask=i < size)


def axis(cells: int, size: int, align_corners: bool, like: Tensor) -> Axis:
    """Made on the device, so that nothing waits for the host; in float64, as large maps need it."""
    cell, fraction = like.new_empty(size, dtype=torch.int32), like.new_empty(size)
    if size:
        axis_kernel[cdiv(size, BLOCK),](cell, fraction, cells, size, ALIGN=align_corners, BLOCK=BLOCK)
    return Axis(cell, fraction)


def first_positions(cell: Tensor, cells: int) -> Tensor:
    """(cells + 1,); the positions of cell j are [first[j], first[j + 1])."""
    return torch.searchsorted(cell, torch.arange(cells + 1, dtype=cell.dtype, device=cell.device)).int()


@triton.jit
def blend(a, b, fraction):
    return (1 - fraction) * a + fraction * b


@triton.jit
def load_cells(place, step_down, step_right, down, right, inside):
    """The four cells from ``place`` on, interpolated."""
    left = blend(
        tl.load(place, mask=inside, other=-float("inf")),
        tl.load(place + step_down, mask=inside, other=-float("inf")),
        down,
    )
    here = blend(
        tl.load(place + step_right, mask=inside, other=-float("inf")),
        tl.load(place + step_down + step_right, mask=inside, other=-float("inf")),
        down,
    )
    return tl.where(inside, blend(left, here, right), -float("inf"))


@triton.jit
def pixels_of(
    row_cell, row_fraction, column_cell, column_fraction, height, width, rows, columns, blocks, stride_h, stride_w,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The pixels of this program: image, places in the result, upper left cells, and what interpolates these."""
    program = tl.program_id(0).to(tl.int64)
    line, y = program // blocks, program // blocks % height
    x = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = x < width
    i, j = tl.load(row_cell + y).to(tl.int64), tl.load(column_cell + x, mask=inside, other=0).to(tl.int64)
    step_down, step_right = tl.where(i + 1 < rows, stride_h, 0), tl.where(j + 1 < columns, stride_w, 0)
    down, right = tl.load(row_fraction + y), tl.load(column_fraction + x, mask=inside, other=0.0)
    return line // height, line * width + x, inside, i * stride_h + j * stride_w, step_down, step_right, down, right


AOT = [
    (
        axis_kernel,
        {"cell": "*i32", "fraction": "*T"},
        [{"ALIGN": align, "BLOCK": BLOCK} for align in (False, True)],
    )
]
