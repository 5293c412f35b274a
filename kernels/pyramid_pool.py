"""Pyramid pooling on a GPU: all levels in one pass over the map, as two products with matrices of averages.

Idea. The bins of all levels, one after the other, make a matrix of averages R over the rows of a plane, and one C over
its columns. Then R x C^T has every bin of every level, and between levels what is not stored. A program has a plane and
up to BINS rows and columns of bins, which is all of them in the pyramids that papers use, and reads the plane once.
Back, a program has a block of a plane: R^T g C with the gradients of the bins, zeros between levels.

A pyramid is a constant of its kernels, which make R and C in registers: tables would have to come from the host, which
waits for that. Each pyramid is compiled once.

float32 is split into three TF32 products, which keeps about 22 bits; float64 does without tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.tile_product import product
from torch import Tensor


@triton.jit
def level_of(i, SIZES: tl.constexpr):
    """Of bins, counted through all levels: the level, their number in it, and its size; level -1 beyond the last."""
    level, own, size = tl.zeros_like(i) - 1, i, tl.zeros_like(i) + 1
    before = 0
    for k in tl.static_range(len(SIZES)):
        here = (i >= before) & (i < before + SIZES[k])
        level, own, size = tl.where(here, k, level), tl.where(here, i - before, own), tl.where(here, SIZES[k], size)
        before += SIZES[k]
    return level, own, size


@triton.jit
def averages(i, at, length, SIZES: tl.constexpr, dtype: tl.constexpr):
    """What position ``at`` (which broadcasts) has in bin i: 1 over the length of the bin inside of it, else 0."""
    level, own, size = level_of(i, SIZES)
    start, end = own * length // size, ((own + 1) * length + size - 1) // size
    return tl.where((level >= 0) & (at >= start) & (at < end), 1 / (end - start).to(dtype), 0.0)


@triton.jit
def places(i, j, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where bins (i, j), which broadcast, lie in a plane's result, and whether they are of one level."""
    row_level, row, _ = level_of(i, ROWS)
    column_level, column, size = level_of(j, COLUMNS)
    start = tl.zeros_like(row_level)
    before = 0
    for k in tl.static_range(len(ROWS)):
        start = tl.where(row_level == k, before, start)
        before += ROWS[k] * COLUMNS[k]
    return start + row * size + column, (row_level == column_level) & (row_level >= 0)


@triton.jit
def pool_kernel(
    x, out, height, width, rows, columns, bins,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BINS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """x (planes, height, width) to out (planes, bins)."""
    plane = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BINS + tl.arange(0, BINS)
    j = tl.program_id(2) * BINS + tl.arange(0, BINS)
    x += plane * height * width
    dtype = x.dtype.element_ty
    total = tl.zeros([BINS, BINS], dtype)
    for left in range(0, width, WIDTH):
        w = left + tl.arange(0, WIDTH)
        part = tl.zeros([BINS, WIDTH], dtype)
        for top in range(0, height, HEIGHT):
            y = top + tl.arange(0, HEIGHT)
            block = tl.load(
                x + y[:, None].to(tl.int64) * width + w[None, :],
                mask=(y < height)[:, None] & (w < width)[None, :],
                other=0.0,
            )
            part += product(averages(i[:, None], y[None, :], height, ROWS, dtype), block)
        total += product(part, averages(j[None, :], w[:, None], width, COLUMNS, dtype))
    at, valid = places(i[:, None], j[None, :], ROWS, COLUMNS)
    tl.store(out + plane * bins + at, total, mask=valid)


@triton.jit
def spread_kernel(
    grad, out, height, width, rows, columns, bins,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BINS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """grad (planes, bins) to out (planes, height, width)."""
    plane = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
    w = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    dtype = grad.dtype.element_ty
    total = tl.zeros([HEIGHT, WIDTH], dtype)
    for first in range(0, rows, BINS):
        i = first + tl.arange(0, BINS)
        part = tl.zeros([BINS, WIDTH], dtype)
        for start in range(0, columns, BINS):
            j = start + tl.arange(0, BINS)
            at, valid = places(i[:, None], j[None, :], ROWS, COLUMNS)
            g = tl.load(grad + plane * bins + at, mask=valid, other=0.0)
            part += product(g, averages(j[:, None], w[None, :], width, COLUMNS, dtype))
        total += product(averages(i[None, :], y[:, None], height, ROWS, dtype), part)
    place = (plane * height + y[:, None]) * width + w[None, :]
    tl.store(out + place, total, mask=(y < height)[:, None] & (w < width)[None, :])


def tile(dtype: torch.dtype) -> dict[str, int]:
    """Tiles that do not spill; float64 holds a three-dimensional product in registers."""
    if dtype == torch.float64:
        return {"BINS": 16, "HEIGHT": 4, "WIDTH": 4, "num_warps": 4}
    return {"BINS": 32, "HEIGHT": 32, "WIDTH": 64, "num_warps": 8, "num_stages": 1}


def pyramid_pool(x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """x (N, C, H, W) to (N, C, S)."""
    (n, channels, height, width), sizes = x.shape, tile(x.dtype)
    out = x.new_empty(n, channels, sum(r * c for r, c in zip(rows, columns, strict=True)))
    if out.numel():
        down, across = sum(rows), sum(columns)
        grid = (n * channels, cdiv(down, sizes["BINS"]), cdiv(across, sizes["BINS"]))
        pyramid = {"ROWS": tuple(rows), "COLUMNS": tuple(columns)}
        pool_kernel[grid](x.contiguous(), out, height, width, down, across, out.shape[2], **pyramid, **sizes)
    return out


def pyramid_pool_backward(grad: Tensor, height: int, width: int, rows: list[int], columns: list[int]) -> Tensor:
    """grad (N, C, S) to (N, C, height, width)."""
    (n, channels, bins), sizes = grad.shape, tile(grad.dtype)
    out = grad.new_empty(n, channels, height, width)
    if out.numel():
        grid = (n * channels, cdiv(height, sizes["HEIGHT"]), cdiv(width, sizes["WIDTH"]))
        pyramid = {"ROWS": tuple(rows), "COLUMNS": tuple(columns)}
        spread_kernel[grid](grad.contiguous(), out, height, width, sum(rows), sum(columns), bins, **pyramid, **sizes)
    return out


AOT = [
    (
        kernel,
        dict.fromkeys(("x", "grad", "out"), f"*{name}"),
        [{"ROWS": p, "COLUMNS": p, **tile(dtype)} for p in ((1, 2, 3, 6), (1, 2, 4, 8))],
    )
    for kernel in (pool_kernel, spread_kernel)
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
]
