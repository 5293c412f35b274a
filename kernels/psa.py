"""Point-wise spatial attention on a GPU: tiles of the matrix of sources and receivers, never the matrix.

Idea. A program has a block of receivers and of channels and goes over all sources: it gathers a tile of logits from the
attention map, keeps the largest and the sum of the exponentials of each receiver so far, and multiplies with the value
while the tile is in registers. The first block of channels leaves the two numbers for the backward pass. There a
program has sources and channels, makes the weights anew and multiplies with the gradient of the result; and a program
for each tile of the matrix multiplies value and gradient over all channels and scatters what belongs to the attention.
An entry belongs to one source and receiver, so nothing is added up, and results repeat.

Memory. Along a row or a column of the matrix entries lie about a plane of the attention map apart, along a diagonal
they are neighbours. So tiles are read and written by diagonals, and their columns turned to where they belong in
between. In a compact map rows or columns are in one piece. Value and gradient are copied once with their channels side
by side.

Precision. Logits, their softmax and all sums are float32. float32 products are split into three TF32 products, which
keeps about 22 bits, unless torch.backends.cuda.matmul.allow_tf32 is set; halves are multiplied as they are, weights
rounded to the maps' dtype; float64 does without tensor cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from segops.kernels.channels_last import inner, last, load_tile, store_tile
from segops.kernels.integers import cdiv, next_power_of_2
from segops.kernels.tile_product import add_product, precision
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import sum_dtype


@triton.jit
def entries_of(
    sources, receivers, positions, width, rows, columns, COLLECT: tl.constexpr, COMPACT: tl.constexpr
):  # fmt: skip
    """Offsets in an attention map of the entries of sources and receivers (which broadcast), and which exist."""
    if COLLECT:
        own, other = receivers, sources
    else:
        own, other = sources, receivers
    exist = (sources < positions) & (receivers < positions)
    if COMPACT:
        plane = other + 0 * own
    else:
        i = other // width - own // width + rows // 2
        j = other % width - own % width + columns // 2
        exist = exist & (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
        plane = i * columns + j
    return plane.to(tl.int64) * positions + own, exist


@triton.jit
def turn(tile, STEP: tl.constexpr, COMPACT: tl.constexpr):
    """Each column of a tile turned by STEP more than that before it; a tile of a compact map as it is."""
    if not COMPACT:
        i = tl.arange(0, tile.shape[0])[:, None] + STEP * tl.arange(0, tile.shape[1])[None, :]
        tile = tl.gather(tile, i & (tile.shape[0] - 1), 0)
    return tile


@triton.jit
def turned(first, OWN: tl.constexpr, OTHER: tl.constexpr, COMPACT: tl.constexpr):
    """Positions from first on, a column for each of OTHER positions; turned, so that a row is a diagonal of the matrix:
    its entries are neighbours in an attention map, unless that is compact."""
    i = tl.arange(0, OWN)[:, None]
    if not COMPACT:
        i = (i + tl.arange(0, OTHER)[None, :]) & (OWN - 1)
    return first + i


@triton.jit
def place(blocks, groups, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Item of the batch, first position and channels of a program."""
    block = tl.program_id(0) // groups
    c = tl.program_id(0) % groups * CHANNELS + tl.arange(0, CHANNELS)
    return (block // blocks).to(tl.int64), block % blocks * BLOCK, c


@triton.jit
def attend_kernel(
    value, attention, out, stats, channels, stride, positions, width, rows, columns, planes, blocks, groups,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (C, P) = value m for a block of receivers; stats (2, P): the largest logit, the sum of exponentials."""
    item, begin, c = place(blocks, groups, OWN, CHANNELS)
    t, own = begin + tl.arange(0, OWN), turned(begin, OWN, OTHER, COMPACT)
    value += item * positions * stride
    attention += item * planes * positions
    real = stats.dtype.element_ty
    total = tl.zeros([OWN, CHANNELS], real)
    largest = tl.full([OWN], float("-inf"), real)
    sums = tl.zeros([OWN], real)
    for first in range(0, positions, OTHER):
        s = first + tl.arange(0, OTHER)
        offsets, exist = entries_of(s[None, :], own, positions, width, rows, columns, COLLECT, COMPACT)
        m = turn(tl.load(attention + offsets, mask=exist, other=0.0), -1, COMPACT)
        if SOFTMAX:
            m = tl.where((s < positions)[None, :], m.to(real), float("-inf"))
            most = tl.maximum(largest, tl.max(m, axis=1))
            least = tl.where(most == float("-inf"), 0.0, most)  # no logit but -inf yet: their distance is no number
            m = tl.exp(m - least[:, None])
            decay = tl.exp(largest - least)
            sums = sums * decay + tl.sum(m, axis=1)
            total *= decay[:, None]
            largest = most
        x = load_tile(value, s[:, None], c[None, :], positions, stride)
        total = add_product(total, m.to(x.dtype), x, PRECISION)
    if SOFTMAX:
        total /= sums[:, None]
        if tl.program_id(0) % groups == 0:
            stats += item * 2 * positions
            tl.store(stats + t, largest, mask=t < positions)
            tl.store(stats + positions + t, sums, mask=t < positions)
    store_tile(out + item * channels * positions, total, t, c, positions, channels, positions)


@triton.jit
def weights_of(m, exist, t, stats, positions, SOFTMAX: tl.constexpr):
    """Logits to weights, by the numbers that the forward pass left of the receivers t; 0 beyond the map."""
    if SOFTMAX:
        largest = tl.load(stats + t, mask=t < positions, other=0.0)
        sums = tl.load(stats + positions + t, mask=t < positions, other=1.0)
        m = tl.where(exist, tl.exp(m.to(largest.dtype) - largest) / sums, 0.0)
    return m


@triton.jit
def differentiate_value_kernel(
    grad, attention, stats, out, channels, stride, positions, width, rows, columns, planes, blocks, groups,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (C, P) = grad m^T for a block of sources."""
    item, begin, c = place(blocks, groups, OWN, CHANNELS)
    own = turned(begin, OWN, OTHER, COMPACT)
    grad += item * positions * stride
    attention += item * planes * positions
    stats += item * 2 * positions
    total = tl.zeros([OWN, CHANNELS], stats.dtype.element_ty)
    for first in range(0, positions, OTHER):
        t = first + tl.arange(0, OTHER)
        offsets, exist = entries_of(own, t[None, :], positions, width, rows, columns, COLLECT, COMPACT)
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        m = weights_of(m, (t < positions)[None, :], t[None, :], stats, positions, SOFTMAX)
        x = load_tile(grad, t[:, None], c[None, :], positions, stride)
        total = add_product(total, turn(m.to(x.dtype), -1, COMPACT), x, PRECISION)
    s = begin + tl.arange(0, OWN)
    store_tile(out + item * channels * positions, total, s, c, positions, channels, positions)


@triton.jit
def differentiate_attention_kernel(
    grad, value, attention, stats, dot, out, stride, positions, width, rows, columns, planes, blocks,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The entries of a block of sources and one of receivers; dot (P) is the product of result and gradient."""
    tile = tl.program_id(0) // blocks
    t = tl.program_id(0) % blocks * OTHER + tl.arange(0, OTHER)
    begin = tile % tl.cdiv(positions, OWN) * OWN
    s = begin + tl.arange(0, OWN)
    item = (tile // tl.cdiv(positions, OWN)).to(tl.int64)
    grad += item * positions * stride
    value += item * positions * stride
    total = tl.zeros([OWN, OTHER], stats.dtype.element_ty)
    for first in range(0, stride, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        x = load_tile(value, s[:, None], c[None, :], positions, stride)
        y = load_tile(grad, t[None, :], c[:, None], positions, stride)
        total = add_product(total, x, y, PRECISION)
    total = turn(total, 1, COMPACT)
    s = turned(begin, OWN, OTHER, COMPACT)
    offsets, exist = entries_of(s, t[None, :], positions, width, rows, columns, COLLECT, COMPACT)
    offsets += item * planes * positions
    if SOFTMAX:
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        m = weights_of(m, exist, t[None, :], stats + item * 2 * positions, positions, SOFTMAX)
        total = m * (total - tl.load(dot + item * positions + t, mask=t < positions, other=0.0)[None, :])
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=exist)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def tiles(channels: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Of results, with that of the matrix: first the largest that do not spill, since every block of channels gathers
    the weights anew. float64 holds a three-dimensional product in registers."""
    if dtype == torch.float64:
        return [{"CHANNELS": 8, "OWN": 16, "OTHER": 16, "num_warps": 8, "PRECISION": precision()}]
    width = min(128 if dtype == torch.float32 else 256, max(64, next_power_of_2(channels)))
    first = {"CHANNELS": width, "OWN": 64, "OTHER": 32, "num_warps": 8, "PRECISION": precision()}
    if dtype == torch.float32:
        return tuning.variants({**first, "num_stages": 1}, {"OTHER": 16})
    return tuning.variants({**first, "num_stages": 3}, {"OWN": 32, "num_stages": 2})


def squares(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Of the matrix of sources and receivers."""
    if dtype == torch.float64:
        return [{"CHANNELS": 16, "OWN": 16, "OTHER": 16, "num_warps": 4, "PRECISION": precision()}]
    depth = 32 if dtype == torch.float32 else 64
    first = {"CHANNELS": depth, "OWN": 64, "OTHER": 64, "num_warps": 8, "num_stages": 2, "PRECISION": precision()}
    return tuning.variants(first, {"CHANNELS": depth // 2})


def sizes(x: Tensor, attention: Tensor, rows: int, columns: int) -> tuple[int, ...]:
    """The integers that all kernels take; x has its channels last."""
    return x.shape[2], x.shape[1], attention.shape[3], rows, columns, attention.shape[1]


def psa(
    value: Tensor, attention: Tensor, mode: str, mask_height: int, mask_width: int, compact: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    """value (N, C, H, W) to the same, and (N, 2, H W) for the backward pass."""
    n, channels, height, width = value.shape
    out, stats = (
        value.new_empty(value.shape),
        value.new_empty(n, 2, height * width if softmax else 0, dtype=sum_dtype(value)),
    )
    if n == 0:
        return out, stats
    value, attention = last(value.flatten(2)), attention.contiguous()
    integers = sizes(value, attention, mask_height, mask_width)
    flags = {"COLLECT": mode == "collect", "COMPACT": compact, "SOFTMAX": softmax}

    def launch(constants: dict) -> None:
        blocks, groups = cdiv(height * width, constants["OWN"]), cdiv(channels, constants["CHANNELS"])
        attend_kernel[(n * blocks * groups,)](
            value, attention, out, stats, channels, *integers, blocks, groups, **flags, **constants
        )

    tuning.run("psa.attend", launch, tiles(channels, out.dtype), MACHINES, out, n, *integers, *flags.values())
    return out, stats


def psa_backward(
    grad: Tensor,
    value: Tensor,
    attention: Tensor,
    out: Tensor,
    stats: Tensor,
    mode: str,
    mask_height: int,
    mask_width: int,
    compact: bool,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of value and attention."""
    attention, stats = attention.contiguous(), stats.contiguous()
    n, channels, height, width = value.shape
    grad_value = value.new_empty(value.shape)
    grad_attention = attention.new_empty(attention.shape) if compact else attention.new_zeros(attention.shape)
    if n == 0:
        return grad_value, grad_attention
    dot = inner(out, grad, stats.dtype) if softmax else stats
    grad, value = last(grad.flatten(2)), last(value.flatten(2))
    integers = sizes(value, attention, mask_height, mask_width)
    flags = {"COLLECT": mode == "collect", "COMPACT": compact, "SOFTMAX": softmax}

    def of_value(constants: dict) -> None:
        blocks, groups = cdiv(height * width, constants["OWN"]), cdiv(channels, constants["CHANNELS"])
        differentiate_value_kernel[(n * blocks * groups,)](
            grad, attention, stats, grad_value, channels, *integers, blocks, groups, **flags, **constants
        )

    def of_attention(constants: dict) -> None:
        blocks = cdiv(height * width, constants["OTHER"])
        differentiate_attention_kernel[(n * cdiv(height * width, constants["OWN"]) * blocks,)](
            grad, value, attention, stats, dot, grad_attention, *integers, blocks, **flags, **constants
        )

    problem = (value, n, *integers, *flags.values())
    tuning.run("psa.differentiate_value", of_value, tiles(channels, value.dtype), MACHINES, *problem)
    tuning.run("psa.differentiate_attention", of_attention, squares(value.dtype), MACHINES, *problem)
    return grad_value, grad_attention


_FLAGS = ((True, False, True), (False, False, True), (False, False, False), (True, True, True))


def _aot() -> Iterator[tuple]:
    maps, sums = ("value", "attention", "out", "grad"), ("stats", "dot")
    for pointer, dtype, widths in (
        ("*fp32", torch.float32, (512, 64)),
        ("*bf16", torch.bfloat16, (512, 128, 64)),
        ("*fp64", torch.float64, (64,)),
    ):
        types = {**dict.fromkeys(maps, pointer), **dict.fromkeys(sums, pointer.replace("bf16", "fp32"))}
        precisions = ("tf32", "tf32x3") if dtype == torch.float32 else ("tf32",)
        of_results, of_entries = [tiles(channels, dtype) for channels in widths], [squares(dtype)]
        for kernel, problems in (
            (attend_kernel, of_results),
            (differentiate_value_kernel, of_results),
            (differentiate_attention_kernel, of_entries),
        ):
            configurations = [
                [{"COLLECT": collect, "COMPACT": compact, "SOFTMAX": softmax, **c, "PRECISION": p} for c in candidates]
                for (collect, compact, softmax), candidates, p in itertools.product(_FLAGS, problems, precisions)
            ]
            yield kernel, {name: t for name, t in types.items() if name in kernel.arg_names}, configurations


AOT = list(_aot())
