"""Criss-cross attention on a GPU: the columns of a map, then its rows, no attention map in memory.

Idea. A map falls into lines, once into columns and once into rows, which differ in their strides alone; the attention
within a line is dense. Forward, a tile of queries goes through the keys of its column with an online softmax and leaves
the largest energy, the sum of exponentials and the weighted sum of the values; in its row it goes on from there.
Backward, the weights are made anew from the log of the joint sum and multiplied while they are in registers: with the
result's gradient (for the values), and, as gradients of the energies, with keys (for queries) and with queries (for
keys), these two in one launch. Columns write, rows add to what is there. The inputs are copied once, their channels
side by side, in which rows and columns alike are read in wide pieces; rows, last, write the result as it is wanted.

Precision. Sums are float32, also between columns and rows. float32 products are split into three TF32 products, which
keeps about 22 bits, unless torch.backends.cuda.matmul.allow_tf32 is set; halves are multiplied as they are, weights
rounded to the inputs' dtype; float64 does without tensor cores.

Cost. (H + W) multiply-adds a pixel and channel for each product; the energies once more for each block of CHANNELS.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from segops.kernels.channels_last import LOWEST, inner, last, load_tile, scalar_products, store_tile
from segops.kernels.integers import cdiv, tile_width
from segops.kernels.tile_product import add_product, precision
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import sum_dtype


@triton.jit
def place(count, blocks, apart, BLOCK: tl.constexpr):
    """Item of the batch, first pixel of the line, and positions in it, of a program."""
    line = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return (line // count).to(tl.int64), (line % count).to(tl.int64) * apart, i


@triton.jit
def path(i, j, length, IS_COLUMN: tl.constexpr):
    """Which j of a line belong to the path of i; a column leaves a pixel itself to the row."""
    inside = (j < length)[None, :]
    if IS_COLUMN:
        inside = inside & (i[:, None] != j[None, :])
    return inside


@triton.jit
def started(part, i, c, length, stride, step, IS_COLUMN: tl.constexpr):
    """A tile (I, C) of sums: zeros for columns, what columns left for rows."""
    if IS_COLUMN:
        total = tl.zeros([i.shape[0], c.shape[0]], part.dtype.element_ty)
    else:
        total = load_tile(part, i[:, None], c[None, :], length, stride, step)
    return total


@triton.jit
def finish(part, out, total, i, c, length, stride, step, channels, plane, IS_COLUMN: tl.constexpr):
    """Columns leave their sums in part (length, stride), rows write the result (channels, plane)."""
    if IS_COLUMN:
        pointers = part + i.to(tl.int64)[:, None] * step * stride + c[None, :]
        tl.store(pointers, total, mask=(i < length)[:, None] & (c < stride)[None, :])
    else:
        store_tile(out, total, i, c, length, channels, plane)


@triton.jit
def attend_kernel(
    query, key, value, part, kept, out, lse,
    count, length, plane, apart, step, blocks, dims_stride, channels_stride, channels,
    IS_COLUMN: tl.constexpr, WHOLE: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The values weighted by the softmax, and the log of its sum. kept (N, P, 2): the largest energies of columns, and
    the sums of their exponentials."""
    item, start, i = place(count, blocks, apart, OWN)
    pixel = item * plane + start
    query += pixel * dims_stride
    key += pixel * dims_stride
    value += pixel * channels_stride
    part += pixel * channels_stride
    kept += (pixel + i.to(tl.int64) * step) * 2
    own = load_tile(query, i[:, None], tl.arange(0, DEPTH)[None, :], length, dims_stride, step)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if IS_COLUMN:
        top = tl.full([OWN], LOWEST, lse.dtype.element_ty)
        total = tl.zeros([OWN], lse.dtype.element_ty)
    else:
        top = tl.load(kept, mask=i < length, other=LOWEST)
        total = tl.load(kept + 1, mask=i < length, other=0.0)
    mean = started(part, i, c, length, channels_stride, step, IS_COLUMN)
    for begin in range(0, length, OTHER):
        j = begin + tl.arange(0, OTHER)
        energy = scalar_products(own, query, key, i, j, length, length, dims_stride, WHOLE, DEPTH, PRECISION, step)
        energy = tl.where(path(i, j, length, IS_COLUMN), energy, float("-inf"))
        higher = tl.maximum(top, tl.max(energy, axis=1))
        weight = tl.exp(energy - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        x = load_tile(value, j[:, None], c[None, :], length, channels_stride, step)
        mean = add_product(mean * shrink[:, None], weight.to(x.dtype), x, PRECISION)
        top = higher
    if not IS_COLUMN:
        mean /= total[:, None]
    out += item * channels * plane + start
    finish(part, out, mean, i, c, length, channels_stride, step, channels, plane, IS_COLUMN)
    if tl.program_id(1) == 0:
        if IS_COLUMN:
            tl.store(kept, top, mask=i < length)
            tl.store(kept + 1, total, mask=i < length)
        else:
            tl.store(lse + pixel + i, top + tl.log(total), mask=i < length)


@triton.jit
def of_queries(numbers, i, j, length, step, OF_KEYS: tl.constexpr):
    """A number of each query, whose the softmax is; queries are j where OF_KEYS, else i."""
    if OF_KEYS:
        found = tl.load(numbers + j.to(tl.int64) * step, mask=j < length, other=0.0)[None, :]
    else:
        found = tl.load(numbers + i.to(tl.int64) * step, mask=i < length, other=0.0)[:, None]
    return found


@triton.jit
def weights_of(
    x, own, other, lse, i, j, length, stride, step,
    IS_COLUMN: tl.constexpr, OF_KEYS: tl.constexpr, WHOLE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax once more. x is as in scalar_products."""
    energy = scalar_products(x, own, other, i, j, length, length, stride, WHOLE, DEPTH, PRECISION, step)
    energy -= of_queries(lse, i, j, length, step, OF_KEYS)
    return tl.exp(tl.where(path(i, j, length, IS_COLUMN), energy, float("-inf")))


@triton.jit
def value_gradient_kernel(
    key, query, grad, lse, part, out,
    count, length, plane, apart, step, blocks, dims_stride, channels_stride, channels,
    IS_COLUMN: tl.constexpr, WHOLE: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The transposed weights times the result's gradient."""
    item, start, i = place(count, blocks, apart, OWN)
    pixel = item * plane + start
    key += pixel * dims_stride
    query += pixel * dims_stride
    grad += pixel * channels_stride
    part += pixel * channels_stride
    lse += pixel
    own = load_tile(key, i[:, None], tl.arange(0, DEPTH)[None, :], length, dims_stride, step)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = started(part, i, c, length, channels_stride, step, IS_COLUMN)
    for begin in range(0, length, OTHER):
        j = begin + tl.arange(0, OTHER)
        weight = weights_of(
            own, key, query, lse, i, j, length, dims_stride, step, IS_COLUMN, True, WHOLE, DEPTH, PRECISION
        )
        x = load_tile(grad, j[:, None], c[None, :], length, channels_stride, step)
        total = add_product(total, weight.to(x.dtype), x, PRECISION)
    out += item * channels * plane + start
    finish(part, out, total, i, c, length, channels_stride, step, channels, plane, IS_COLUMN)


@triton.jit
def energy_gradient(
    own, other, left, right, lse, mean, part, out,
    item, start, i, length, plane, step, dims_stride, channels_stride, dims,
    IS_COLUMN: tl.constexpr, OF_KEYS: tl.constexpr, WHOLE: tl.constexpr, WHOLE_VALUES: tl.constexpr,
    OTHER: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of own: queries with left = grad and right = value, or keys with left = value and right = grad.

    Gradients of weights are left times right, those of energies weight (left right - mean), and they multiply other.
    """
    pixel = item * plane + start
    own += pixel * dims_stride
    other += pixel * dims_stride
    left += pixel * channels_stride
    right += pixel * channels_stride
    part += pixel * dims_stride
    lse += pixel
    mean += pixel
    first = tl.arange(0, DEPTH)[None, :]
    x = load_tile(own, i[:, None], first, length, dims_stride, step)
    y = load_tile(left, i[:, None], first, length, channels_stride, step)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = started(part, i, d, length, dims_stride, step, IS_COLUMN)
    for begin in range(0, length, OTHER):
        j = begin + tl.arange(0, OTHER)
        weight = weights_of(
            x, own, other, lse, i, j, length, dims_stride, step, IS_COLUMN, OF_KEYS, WHOLE, DEPTH, PRECISION
        )
        grad = scalar_products(
            y, left, right, i, j, length, length, channels_stride, WHOLE_VALUES, DEPTH, PRECISION, step
        )  # fmt: skip
        weight *= grad - of_queries(mean, i, j, length, step, OF_KEYS)
        z = load_tile(other, j[:, None], d[None, :], length, dims_stride, step)
        total = add_product(total, weight.to(z.dtype), z, PRECISION)
    out += item * dims * plane + start
    finish(part, out, total, i, d, length, dims_stride, step, dims, plane, IS_COLUMN)


@triton.jit
def energy_gradient_kernel(
    query, key, grad, value, lse, mean, query_part, key_part, query_out, key_out,
    count, length, plane, apart, step, blocks, dims_stride, channels_stride, dims,
    IS_COLUMN: tl.constexpr, WHOLE: tl.constexpr, WHOLE_VALUES: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of queries, and those of keys: halves of the programs, so that one launch fills the device."""
    item, start, i = place(count, blocks, apart, OWN)
    if tl.program_id(2) == 0:
        energy_gradient(
            query, key, grad, value, lse, mean, query_part, query_out,
            item, start, i, length, plane, step, dims_stride, channels_stride, dims,
            IS_COLUMN, False, WHOLE, WHOLE_VALUES, OTHER, DEPTH, CHANNELS, PRECISION,
        )  # fmt: skip
    else:
        energy_gradient(
            key, query, value, grad, lse, mean, key_part, key_out,
            item, start, i, length, plane, step, dims_stride, channels_stride, dims,
            IS_COLUMN, True, WHOLE, WHOLE_VALUES, OTHER, DEPTH, CHANNELS, PRECISION,
        )  # fmt: skip


# Where the first candidates were measured: nowhere, they are younger than benchmarks/results/gpu-h200.json.
MACHINES = ()


def tiles(dtype: torch.dtype, results: int, dims: int, channels: int = 0) -> list[dict[str, int | str]]:
    """The constants of a launch that makes energies of ``dims`` channels, with ``channels`` their gradients of so many,
    for results of so many channels. First the largest tiles that do not spill; float64 holds a three-dimensional
    product in registers, and has no other tiles."""
    if dtype == torch.float64:
        sizes = {"OWN": 16, "OTHER": 8, "DEPTH": 8, "CHANNELS": 8, "num_warps": 4, "num_stages": 1}
    elif dtype == torch.float32:
        most = 64 if channels else 128
        sizes = {"OTHER": 16, "DEPTH": 32, "CHANNELS": min(most, tile_width(results)), "num_stages": 2}
    else:
        sizes = {"OTHER": 32, "DEPTH": 64, "CHANNELS": min(256, tile_width(results)), "num_stages": 2}
    sizes = {"OWN": 64, "num_warps": 4 if max(results, dims, channels) <= 32 else 8, **sizes}
    if dtype != torch.float64:
        sizes["DEPTH"] = min(sizes["DEPTH"], tile_width(max(dims, channels)))
    first = {**sizes, "WHOLE": dims <= sizes["DEPTH"], "PRECISION": precision()}
    if channels:
        first["WHOLE_VALUES"] = channels <= sizes["DEPTH"]
    if dtype == torch.float64:
        return [first]
    halved = {"CHANNELS": max(16, sizes["CHANNELS"] // 2)}
    if dtype == torch.float32:
        return tuning.variants(first, {"OWN": 32, "num_stages": 1}, {**halved, "OTHER": 32})
    return tuning.variants(first, {"OWN": 32}, {"OTHER": 64}, halved)


def each_direction(x: Tensor, constants: dict, channels: int) -> Iterator[tuple[tuple[int, int], tuple, bool]]:
    """Programs for lines of x (N, H, W, ...) by blocks of channels, the arguments from ``count`` to ``blocks``, and
    IS_COLUMN: columns, then rows."""
    n, height, width = x.shape[:3]
    parts = cdiv(channels, constants["CHANNELS"])
    for is_column, count, length, apart, step in ((True, width, height, 1, width), (False, height, width, width, 1)):
        blocks = cdiv(length, constants["OWN"])
        yield (n * count * blocks, parts), (count, length, height * width, apart, step, blocks), is_column


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """query, key (N, D, H, W), value (N, C, H, W) to (N, C, H, W) and the softmaxes' log-sums (N, H, W)."""
    n, channels, height, width = value.shape
    sums = sum_dtype(value)
    out, lse = value.new_empty(value.shape), value.new_empty((n, height, width), dtype=sums)
    if value.numel() == 0:
        return out, lse
    dims = query.shape[1]
    query, key, value = map(last, (query, key, value))
    part, kept = torch.empty_like(value, dtype=sums), value.new_empty((n, height, width, 2), dtype=sums)

    def launch(constants: dict) -> None:
        for programs, geometry, is_column in each_direction(value, constants, channels):
            attend_kernel[programs](
                query, key, value, part, kept, out, lse,
                *geometry, query.shape[3], value.shape[3], channels, IS_COLUMN=is_column, **constants,
            )  # fmt: skip

    candidates = tiles(value.dtype, channels, dims)
    tuning.run("criss_cross_attention.attend", launch, candidates, MACHINES, value, n, dims, channels, height, width)
    return out, lse


def criss_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    results = [x.new_empty(x.shape) for x in (query, key, value)]
    if value.numel() == 0:
        return tuple(results)  # type: ignore[return-value]
    n, channels, height, width = value.shape
    dims, lse = query.shape[1], lse.contiguous()
    mean = inner(grad, out, lse.dtype)
    grad, query, key, value = map(last, (grad, query, key, value))
    parts = [torch.empty_like(x, dtype=lse.dtype) for x in (query, key, value)]

    def of_value(constants: dict) -> None:
        for programs, geometry, is_column in each_direction(value, constants, channels):
            value_gradient_kernel[programs](
                key, query, grad, lse, parts[2], results[2],
                *geometry, query.shape[3], value.shape[3], channels, IS_COLUMN=is_column, **constants,
            )  # fmt: skip

    def of_energies(constants: dict) -> None:
        for programs, geometry, is_column in each_direction(value, constants, dims):
            energy_gradient_kernel[(*programs, 2)](
                query, key, grad, value, lse, mean, *parts[:2], *results[:2],
                *geometry, query.shape[3], value.shape[3], dims, IS_COLUMN=is_column, **constants,
            )  # fmt: skip

    sizes = (n, dims, channels, height, width)
    candidates = tiles(value.dtype, channels, dims)
    tuning.run("criss_cross_attention.value_gradient", of_value, candidates, MACHINES, value, *sizes)
    candidates = tiles(value.dtype, dims, dims, channels)
    tuning.run("criss_cross_attention.energy_gradient", of_energies, candidates, MACHINES, value, *sizes)
    return tuple(results)  # type: ignore[return-value]


def _aot() -> Iterator[tuple]:
    inputs = ("query", "key", "value", "out", "grad", "query_out", "key_out")
    for pointer, sums, dtype in (
        ("*fp32", "*fp32", torch.float32),
        ("*bf16", "*fp32", torch.bfloat16),
        ("*fp64", "*fp64", torch.float64),
    ):
        for kernel in (attend_kernel, value_gradient_kernel, energy_gradient_kernel):
            types = dict.fromkeys(("lse", "mean", "part", "kept", "query_part", "key_part"), sums)
            types = {n: t for n, t in (types | dict.fromkeys(inputs, pointer)).items() if n in kernel.arg_names}
            shapes = {torch.float64: ((8, 8),)}.get(dtype, ((16, 16), (32, 256), (64, 512), (512, 512)))
            precisions = ("tf32", "tf32x3") if dtype == torch.float32 else ("tf32",)
            every = itertools.product((True, False), shapes, precisions)
            yield (
                kernel,
                types,
                [
                    [{"IS_COLUMN": is_column, **o, "PRECISION": p} for o in options]
                    for is_column, (d, c), p in every
                    for options in [tiles(dtype, d, d, c) if "WHOLE_VALUES" in kernel.arg_names else tiles(dtype, c, d)]
                ],
            )


AOT = list(_aot())
