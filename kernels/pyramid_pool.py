"""Pyramid pooling on a GPU: all levels in one pass over the map, as two products with matrices of averages.

Idea. The bins of all levels, one after the other, make a matrix of averages R over the rows of a plane, and one C over
its columns. Then R x C^T has every bin of every level, and between levels what is not stored. A program has a plane and
up to BINS rows and columns of bins, which is all of them in the pyramids that papers use, and reads the plane once.
Back, a program has a block of a plane: R^T g C with the gradients of the bins, zeros between levels.

float32 is split into three TF32 products, which keeps about 22 bits; float64 does without tensor cores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from segops.kernels.tile_product import product
from torch import Tensor

from segops.reference.pyramid_pool import averages


@triton.jit
def bins_of(row_level, row_start, column_level, column, i, j, rows, columns):
    """Where bins (i, j) of a plane lie, and whether they are of one level."""
    here = tl.load(row_level + i, mask=i < rows, other=-1)[:, None]
    there = tl.load(column_level + j, mask=j < columns, other=-2)[None, :]
    at = (
        tl.load(row_start + i, mask=i < rows, other=0)[:, None]
        + tl.load(column + j, mask=j < columns, other=0)[None, :]
    )
    return at, here == there


@triton.jit
def pool_kernel(
    x, row_averages, column_averages, row_level, row_start, column_level, column, out,
    height, width, rows, columns, bins,
    BINS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """x (planes, height, width) to out (planes, bins)."""
    plane = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BINS + tl.arange(0, BINS)
    j = tl.program_id(2) * BINS + tl.arange(0, BINS)
    at, valid = bins_of(row_level, row_start, column_level, column, i, j, rows, columns)
    x += plane * height * width
    total = tl.zeros([BINS, BINS], x.dtype.element_ty)
    for left in range(0, width, WIDTH):
        w = left + tl.arange(0, WIDTH)
        part = tl.zeros([BINS, WIDTH], x.dtype.element_ty)
        for top in range(0, height, HEIGHT):
            y = top + tl.arange(0, HEIGHT)
            a = tl.load(
                row_averages + i[:, None] * height + y[None, :],
                mask=(i < rows)[:, None] & (y < height)[None, :],
                other=0.0,
            )
            block = tl.load(
                x + y[:, None].to(tl.int64) * width + w[None, :],
                mask=(y < height)[:, None] & (w < width)[None, :],
                other=0.0,
            )
            part += product(a, block)
        b = tl.load(
            column_averages + j[None, :] * width + w[:, None],
            mask=(j < columns)[None, :] & (w < width)[:, None],
            other=0.0,
        )
        total += product(part, b)
    tl.store(out + plane * bins + at, total, mask=valid)


@triton.jit
def spread_kernel(
    grad, row_averages, column_averages, row_level, row_start, column_level, column, out,
    height, width, rows, columns, bins,
    BINS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """grad (planes, bins) to out (planes, height, width)."""
    plane = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
    w = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros([HEIGHT, WIDTH], grad.dtype.element_ty)
    for first in range(0, rows, BINS):
        i = first + tl.arange(0, BINS)
        part = tl.zeros([BINS, WIDTH], grad.dtype.element_ty)
        for start in range(0, columns, BINS):
            j = start + tl.arange(0, BINS)
            at, valid = bins_of(row_level, row_start, column_level, column, i, j, rows, columns)
            g = tl.load(grad + plane * bins + at, mask=valid, other=0.0)
            b = tl.load(
                column_averages + j[:, None] * width + w[None, :],
                mask=(j < columns)[:, None] & (w < width)[None, :],
                other=0.0,
            )
            part += product(g, b)
        a = tl.load(
            row_averages + i[None, :] * height + y[:, None],
            mask=(i < rows)[None, :] & (y < height)[:, None],
            other=0.0,
        )
        total += product(a, part)
    place = (plane * height + y[:, None]) * width + w[None, :]
    tl.store(out + place, total, mask=(y < height)[:, None] & (w < width)[None, :])


class Bins(NamedTuple):
    """What both kernels know of the levels."""

    row_averages: Tensor
    column_averages: Tensor
    row_level: Tensor
    row_start: Tensor
    column_level: Tensor
    column: Tensor


def bins_of_levels(height: int, width: int, rows: list[int], columns: list[int], like: Tensor) -> tuple[Bins, int]:
    """And the number of all bins."""
    sizes = list(zip(rows, columns, strict=True))
    starts = [sum(r * c for r, c in sizes[:level]) for level in range(len(sizes) + 1)]
    tables = (
        [level for level, (r, _) in enumerate(sizes) for _ in range(r)],
        [starts[level] + i * c for level, (r, c) in enumerate(sizes) for i in range(r)],
        [level for level, (_, c) in enumerate(sizes) for _ in range(c)],
        [j for _, c in sizes for j in range(c)],
    )
    integers = (torch.tensor(t, dtype=torch.int32, device=like.device) for t in tables)
    row_averages = torch.cat([averages(r, height, like) for r in rows])
    return Bins(row_averages, torch.cat([averages(c, width, like) for c in columns]), *integers), starts[-1]


def tile(dtype: torch.dtype) -> dict[str, int]:
    """Tiles that do not spill; float64 holds a three-dimensional product in registers."""
    if dtype == torch.float64:
        return {"BINS": 16, "HEIGHT": 4, "WIDTH": 8, "num_warps": 4}
    return {"BINS": 32, "HEIGHT": 32, "WIDTH": 64, "num_warps": 8, "num_stages": 1}


def pyramid_pool(x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """x (N, C, H, W) to (N, C, S)."""
    (n, channels, height, width), sizes = x.shape, tile(x.dtype)
    tables, bins = bins_of_levels(height, width, rows, columns, x)
    out = x.new_empty(n, channels, bins)
    if out.numel():
        many, wide = sum(rows), sum(columns)
        grid = (n * channels, triton.cdiv(many, sizes["BINS"]), triton.cdiv(wide, sizes["BINS"]))
        pool_kernel[grid](x.contiguous(), *tables, out, height, width, many, wide, bins, **sizes)
    return out


def pyramid_pool_backward(grad: Tensor, height: int, width: int, rows: list[int], columns: list[int]) -> Tensor:
    """grad (N, C, S) to (N, C, height, width)."""
    (n, channels, _), sizes = grad.shape, tile(grad.dtype)
    tables, bins = bins_of_levels(height, width, rows, columns, grad)
    out = grad.new_empty(n, channels, height, width)
    if out.numel():
        grid = (n * channels, triton.cdiv(height, sizes["HEIGHT"]), triton.cdiv(width, sizes["WIDTH"]))
        spread_kernel[grid](grad.contiguous(), *tables, out, height, width, sum(rows), sum(columns), bins, **sizes)
    return out


_INTEGERS = dict.fromkeys(("row_level", "row_start", "column_level", "column"), "*i32")

AOT = [
    (
        kernel,
        {**dict.fromkeys(("x", "grad", "row_averages", "column_averages", "out"), f"*{name}"), **_INTEGERS},
        [tile(dtype)],
    )
    for kernel in (pool_kernel, spread_kernel)
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
]
