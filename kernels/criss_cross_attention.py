"""Criss-cross attention on a GPU: the columns of a map, then its rows, no attention map in memory.

Idea. A map falls into lines, once into columns and once into rows, which differ in their strides alone; the attention
within a line is dense. A first pass goes over the energies and keeps of each pixel the largest and the sum of the
exponentials: of its column, then jointly with its row. Every other pass makes the tiles of weights anew from these two
numbers and multiplies them while they are in registers: forward with the values; backward with the result's gradient
(for the values), and, as gradients of the energies, with keys (for queries) and with queries (for keys). Columns write,
rows add to what is there.

Precision. float32 products are split into three TF32 products, which keeps about 22 bits; float64 does without tensor
cores. Halves are multiplied as they are and summed in float32; weights are rounded to the values' dtype.

Cost. (H + W) multiply-adds a pixel and channel for each product; the energies once more for every 64 channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from segops.kernels.tile_product import product
from torch import Tensor

from segops.kernels import tuning


@triton.jit
def scalar_products(own, other, i, j, length, channels, plane, step, DEPTH: tl.constexpr):
    """own (channels, length) at i times other at j, over all channels."""
    real = tl.float64 if own.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([i.shape[0], j.shape[0]], real)
    for first in range(0, channels, DEPTH):
        c = first + tl.arange(0, DEPTH).to(tl.int64)
        x = tl.load(
            own + c[None, :] * plane + i[:, None] * step,
            mask=(c < channels)[None, :] & (i < length)[:, None],
            other=0.0,
        )
        y = tl.load(
            other + c[:, None] * plane + j[None, :] * step,
            mask=(c < channels)[:, None] & (j < length)[None, :],
            other=0.0,
        )
        total += product(x, y)
    return total


@triton.jit
def energies(own, other, i, j, length, dims, plane, step, IS_COLUMN: tl.constexpr, DEPTH: tl.constexpr):
    """-inf beyond the line's end; a column leaves a pixel itself to the row."""
    energy = scalar_products(own, other, i, j, length, dims, plane, step, DEPTH)
    outside = (j >= length)[None, :]
    if IS_COLUMN:
        outside = outside | (i[:, None] == j[None, :])
    return tl.where(outside, float("-inf"), energy)


@triton.jit
def normalized(energy, i, j, largest, scale, length, step, OF_KEYS: tl.constexpr):
    """Energies to weights; the queries, whose softmax it is, are j where OF_KEYS, else i."""
    if OF_KEYS:
        top = tl.load(largest + j * step, mask=j < length, other=0.0)[None, :]
        factor = tl.load(scale + j * step, mask=j < length, other=0.0)[None, :]
    else:
        top = tl.load(largest + i * step, mask=i < length, other=0.0)[:, None]
        factor = tl.load(scale + i * step, mask=i < length, other=0.0)[:, None]
    return tl.exp(energy - top) * factor


@triton.jit
def place(count, blocks, BLOCK: tl.constexpr):
    """Item of the batch, line and positions of a program."""
    line = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return (line // count).to(tl.int64), (line % count).to(tl.int64), i


@triton.jit
def store_tile(out, tile, i, c, length, channels, plane, step, ADD: tl.constexpr):
    """A tile (I, C) of out (channels, length), or added to it."""
    pointers = out + c[None, :] * plane + i[:, None] * step
    mask = (c < channels)[None, :] & (i < length)[:, None]
    if ADD:
        tile += tl.load(pointers, mask=mask, other=0.0)
    tl.store(pointers, tile, mask=mask)


@triton.jit
def normalize_kernel(
    query, key, largest, scale, count, length, dims, plane, apart, step, blocks,
    IS_COLUMN: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Largest energies and sums of exponentials of columns; from rows the joint ones, and one over the sum."""
    item, line, i = place(count, blocks, OWN)
    query += item * dims * plane + line * apart
    key += item * dims * plane + line * apart
    kept = item * plane + line * apart + i * step
    real = largest.dtype.element_ty
    top = tl.full([OWN], -3e38, real)  # not infinite: a column of one pixel has no energies
    total = tl.zeros([OWN], real)
    for begin in range(0, length, OTHER):
        j = begin + tl.arange(0, OTHER).to(tl.int64)
        energy = energies(query, key, i, j, length, dims, plane, step, IS_COLUMN, DEPTH)
        higher = tl.maximum(top, tl.max(energy, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(energy - higher[:, None]), axis=1)
        top = higher
    if not IS_COLUMN:
        column_top = tl.load(largest + kept, mask=i < length, other=0.0)
        column_total = tl.load(scale + kept, mask=i < length, other=0.0)
        higher = tl.maximum(top, column_top)
        total = 1 / (total * tl.exp(top - higher) + column_total * tl.exp(column_top - higher))
        top = higher
    tl.store(largest + kept, top, mask=i < length)
    tl.store(scale + kept, total, mask=i < length)


@triton.jit
def gather_kernel(
    own, other, largest, scale, values, out, count, length, dims, channels, plane, apart, step, blocks,
    IS_COLUMN: tl.constexpr, OF_KEYS: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sum of the weights times values; own are the queries, or with OF_KEYS the keys. Rows add to columns."""
    item, line, i = place(count, blocks, OWN)
    own += item * dims * plane + line * apart
    other += item * dims * plane + line * apart
    largest += item * plane + line * apart
    scale += item * plane + line * apart
    values += item * channels * plane + line * apart
    out += item * channels * plane + line * apart
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([OWN, CHANNELS], out.dtype.element_ty)
    for begin in range(0, length, OTHER):
        j = begin + tl.arange(0, OTHER).to(tl.int64)
        energy = energies(own, other, i, j, length, dims, plane, step, IS_COLUMN, DEPTH)
        weight = normalized(energy, i, j, largest, scale, length, step, OF_KEYS)
        x = tl.load(
            values + c[None, :] * plane + j[:, None] * step,
            mask=(c < channels)[None, :] & (j < length)[:, None],
            other=0.0,
        )
        total += product(weight.to(x.dtype), x)
    store_tile(out, total, i, c, length, channels, plane, step, not IS_COLUMN)


@triton.jit
def energy_gradient_kernel(
    own, other, left, right, largest, scale, mean, out,
    count, length, dims, channels, plane, apart, step, blocks,
    IS_COLUMN: tl.constexpr, OF_KEYS: tl.constexpr,
    OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of own: queries with left = grad and right = value, or keys with left = value and right = grad.

    Gradients of weights are left times right, those of energies weight (left right - mean), and they multiply other.
    """
    item, line, i = place(count, blocks, OWN)
    own += item * dims * plane + line * apart
    other += item * dims * plane + line * apart
    left += item * channels * plane + line * apart
    right += item * channels * plane + line * apart
    largest += item * plane + line * apart
    scale += item * plane + line * apart
    mean += item * plane + line * apart
    out += item * dims * plane + line * apart
    d = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([OWN, CHANNELS], out.dtype.element_ty)
    for begin in range(0, length, OTHER):
        j = begin + tl.arange(0, OTHER).to(tl.int64)
        energy = energies(own, other, i, j, length, dims, plane, step, IS_COLUMN, DEPTH)
        weight = normalized(energy, i, j, largest, scale, length, step, OF_KEYS)
        if OF_KEYS:
            away = tl.load(mean + j * step, mask=j < length, other=0.0)[None, :]
        else:
            away = tl.load(mean + i * step, mask=i < length, other=0.0)[:, None]
        weight *= scalar_products(left, right, i, j, length, channels, plane, step, DEPTH) - away
        x = tl.load(
            other + d[None, :] * plane + j[:, None] * step, mask=(d < dims)[None, :] & (j < length)[:, None], other=0.0
        )
        total += product(weight.to(x.dtype), x)
    store_tile(out, total, i, d, length, dims, plane, step, not IS_COLUMN)


FLOAT64 = {"OWN": 16, "OTHER": 8, "DEPTH": 8, "num_warps": 4, "num_stages": 1}  # products are held in registers

# Where the first of `tiles` was measured: benchmarks/results/gpu-h200.json. That of `energy_tiles` is younger.
MACHINES = ("NVIDIA H200",)
ENERGY_MACHINES = ()


def tiles(dtype: torch.dtype, channels: int, gradient: bool = False) -> list[dict[str, int]]:
    """Tiles of pixels and channels that do not spill."""
    most = 8 if dtype == torch.float64 else 64 if gradient else 128
    least = 16 if dtype == torch.float32 else 32  # 16 of halves spill
    width = {"CHANNELS": min(most, max(least, triton.next_power_of_2(channels)))}
    if dtype == torch.float64:
        return [{**width, **FLOAT64}]
    if dtype == torch.float32:
        first = {**width, "OWN": 64, "OTHER": 32, "DEPTH": 16 if gradient else 32, "num_warps": 8, "num_stages": 1}
    else:
        first = {**width, "OWN": 64, "OTHER": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 1}
    depth = first["DEPTH"] if gradient else 16  # of halves 16 spill in the gradient
    return tuning.variants(first, {"OTHER": first["OTHER"] // 2}, {"DEPTH": depth})


def energy_tiles(dtype: torch.dtype) -> list[dict[str, int]]:
    """Those of the pass which has nothing but energies."""
    if dtype == torch.float64:
        return [FLOAT64]
    first = {"OWN": 64, "OTHER": 64, "DEPTH": 16, "num_warps": 4, "num_stages": 1}
    return tuning.variants(first, {"OTHER": 32}, {"OTHER": 32, "DEPTH": 32})


def summed(x: Tensor) -> torch.dtype:
    """What products of x are summed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def each_direction(x: Tensor, own: int) -> Iterator[tuple[int, tuple[int, ...], bool]]:
    """Programs, the arguments from ``plane`` to ``blocks`` after count and length, IS_COLUMN: columns, then rows."""
    n, _, height, width = x.shape
    for is_column, count, length, apart, step in (
        (True, width, height, 1, width),
        (False, height, width, width, 1),
    ):
        blocks = triton.cdiv(length, own)
        yield n * count * blocks, (count, length, height * width, apart, step, blocks), is_column


def softmax(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The largest energy of every pixel, and one over the sum of the exponentials."""
    n, dims, height, width = query.shape
    largest, scale = query.new_empty((2, n, height, width), dtype=summed(query))

    def launch(constants: dict) -> None:
        for programs, (count, length, *strides), is_column in each_direction(query, constants["OWN"]):
            normalize_kernel[(programs,)](
                query, key, largest, scale, count, length, dims, *strides, IS_COLUMN=is_column, **constants
            )

    candidates = energy_tiles(query.dtype)
    tuning.run("criss_cross_attention.normalize", launch, candidates, ENERGY_MACHINES, query, n, dims, height, width)
    return largest, scale


def gathered(own: Tensor, other: Tensor, largest: Tensor, scale: Tensor, values: Tensor, of_keys: bool) -> Tensor:
    """Values weighted by the attention, or with ``of_keys`` by its transpose."""
    out = torch.empty_like(values, dtype=summed(values))
    dims, channels = own.shape[1], values.shape[1]

    def launch(constants: dict) -> None:
        for programs, (count, length, *strides), is_column in each_direction(values, constants["OWN"]):
            gather_kernel[programs, triton.cdiv(channels, constants["CHANNELS"])](
                own, other, largest, scale, values, out, count, length, dims, channels, *strides,
                IS_COLUMN=is_column, OF_KEYS=of_keys, **constants,
            )  # fmt: skip

    candidates = tiles(values.dtype, channels)
    tuning.run("criss_cross_attention.gather", launch, candidates, MACHINES, values, of_keys, dims, *values.shape)
    return out.to(values.dtype)


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query, key (N, D, H, W), value (N, C, H, W) to (N, C, H, W)."""
    if value.numel() == 0:
        return torch.empty_like(value, memory_format=torch.contiguous_format)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    return gathered(query, key, *softmax(query, key), value, of_keys=False)


def criss_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    grad, query, key, value = grad.contiguous(), query.contiguous(), key.contiguous(), value.contiguous()
    if value.numel() == 0:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    grad_query, grad_key = (torch.empty_like(x, dtype=summed(x)) for x in (query, key))
    largest, scale = softmax(query, key)
    mean = (grad * out).sum(1, dtype=summed(grad))
    dims, channels = query.shape[1], value.shape[1]

    def launch(constants: dict) -> None:
        for of_keys, own, other, left, right, result in (
            (False, query, key, grad, value, grad_query),
            (True, key, query, value, grad, grad_key),
        ):
            for programs, (count, length, *strides), is_column in each_direction(query, constants["OWN"]):
                energy_gradient_kernel[programs, triton.cdiv(dims, constants["CHANNELS"])](
                    own, other, left, right, largest, scale, mean, result, count, length, dims, channels, *strides,
                    IS_COLUMN=is_column, OF_KEYS=of_keys, **constants,
                )  # fmt: skip

    candidates = tiles(query.dtype, dims, gradient=True)
    tuning.run("criss_cross_attention.energy_gradient", launch, candidates, MACHINES, query, dims, *value.shape)
    grad_value = gathered(key, query, largest, scale, grad, of_keys=True)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value


def _aot() -> Iterator[tuple]:
    for pointer, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64), ("*bf16", torch.bfloat16)):
        read = dict.fromkeys(("query", "key", "own", "other", "left", "right", "values"), pointer)
        types = {**read, **dict.fromkeys(("largest", "scale", "mean", "out"), pointer.replace("bf16", "fp32"))}
        for kernel in (normalize_kernel, gather_kernel, energy_gradient_kernel):
            gradient = kernel is energy_gradient_kernel
            rest, widths = [{"OF_KEYS": k} for k in (False, True)], [tiles(dtype, n, gradient) for n in (16, 512)]
            if kernel is normalize_kernel:
                rest, widths = [{}], [energy_tiles(dtype)]
            configurations = [
                [{"IS_COLUMN": is_column, **r, **c} for c in candidates]
                for is_column in (True, False)
                for r in rest
                for candidates in widths
            ]
            yield kernel, {name: t for name, t in types.items() if name in kernel.arg_names}, configurations


AOT = list(_aot())
