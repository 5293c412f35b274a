"""Point-wise spatial attention on a GPU: tiles of the matrix of sources and receivers, never the matrix.

Idea. A program has a block of receivers and of channels and goes over all sources: it gathers a tile of logits from the
attention map, keeps the largest and the sum of the exponentials of each receiver so far, and multiplies with the value
while the tile is in registers. The first block of channels leaves the two numbers for the backward pass. There a
program has sources and channels, makes the weights anew and multiplies with the gradient of the result; and a program
for each tile of the matrix multiplies value and gradient over all channels and scatters what belongs to the attention.
An entry belongs to one source and receiver, so nothing is added up, and results repeat.

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
from segops.kernels.tile_product import add_product
from torch import Tensor

from segops.kernels import tuning


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
def place(blocks, groups, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """Item of the batch, positions and channels of a program."""
    block = tl.program_id(0) // groups
    c = tl.program_id(0) % groups * CHANNELS + tl.arange(0, CHANNELS)
    return (block // blocks).to(tl.int64), block % blocks * BLOCK + tl.arange(0, BLOCK), c


@triton.jit
def load_map(x, c, p, channels, positions):
    """A tile of a map (C, P)."""
    mask = (c < channels) & (p < positions)
    return tl.load(x + c.to(tl.int64) * positions + p, mask=mask, other=0.0)


@triton.jit
def attend_kernel(
    value, attention, out, stats, channels, positions, width, rows, columns, planes, blocks, groups,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (C, P) = value m for a block of receivers; stats (2, P): the largest logit, the sum of exponentials."""
    item, t, c = place(blocks, groups, OWN, CHANNELS)
    value += item * channels * positions
    attention += item * planes * positions
    real = stats.dtype.element_ty
    total = tl.zeros([CHANNELS, OWN], real)
    largest = tl.full([OWN], float("-inf"), real)
    sums = tl.zeros([OWN], real)
    for first in range(0, positions, OTHER):
        s = first + tl.arange(0, OTHER)
        offsets, exist = entries_of(s[:, None], t[None, :], positions, width, rows, columns, COLLECT, COMPACT)
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        if SOFTMAX:
            m = tl.where((s < positions)[:, None], m.to(real), float("-inf"))
            most = tl.maximum(largest, tl.max(m, axis=0))
            least = tl.where(most == float("-inf"), 0.0, most)  # no logit but -inf yet: their distance is no number
            m = tl.exp(m - least[None, :])
            decay = tl.exp(largest - least)
            sums = sums * decay + tl.sum(m, axis=0)
            total *= decay[None, :]
            largest = most
        x = load_map(value, c[:, None], s[None, :], channels, positions)
        total = add_product(total, x, m.to(x.dtype), PRECISION)
    if SOFTMAX:
        total /= sums[None, :]
        if tl.program_id(0) % groups == 0:
            stats += item * 2 * positions
            tl.store(stats + t, largest, mask=t < positions)
            tl.store(stats + positions + t, sums, mask=t < positions)
    mask = (c < channels)[:, None] & (t < positions)[None, :]
    tl.store(out + (item * channels + c)[:, None] * positions + t[None, :], total.to(out.dtype.element_ty), mask=mask)


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
    grad, attention, stats, out, channels, positions, width, rows, columns, planes, blocks, groups,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (C, P) = grad m^T for a block of sources."""
    item, s, c = place(blocks, groups, OWN, CHANNELS)
    grad += item * channels * positions
    attention += item * planes * positions
    stats += item * 2 * positions
    total = tl.zeros([CHANNELS, OWN], stats.dtype.element_ty)
    for first in range(0, positions, OTHER):
        t = first + tl.arange(0, OTHER)
        offsets, exist = entries_of(s[None, :], t[:, None], positions, width, rows, columns, COLLECT, COMPACT)
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        m = weights_of(m, (t < positions)[:, None], t[:, None], stats, positions, SOFTMAX)
        x = load_map(grad, c[:, None], t[None, :], channels, positions)
        total = add_product(total, x, m.to(x.dtype), PRECISION)
    mask = (c < channels)[:, None] & (s < positions)[None, :]
    tl.store(out + (item * channels + c)[:, None] * positions + s[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def differentiate_attention_kernel(
    grad, value, attention, stats, dot, out, channels, positions, width, rows, columns, planes, blocks,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The entries of a block of sources and one of receivers; dot (P) is the product of result and gradient."""
    tile = tl.program_id(0) // blocks
    t = tl.program_id(0) % blocks * OTHER + tl.arange(0, OTHER)
    s = tile % tl.cdiv(positions, OWN) * OWN + tl.arange(0, OWN)
    item = (tile // tl.cdiv(positions, OWN)).to(tl.int64)
    grad += item * channels * positions
    value += item * channels * positions
    total = tl.zeros([OWN, OTHER], stats.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        x = load_map(value, c[None, :], s[:, None], channels, positions)
        y = load_map(grad, c[:, None], t[None, :], channels, positions)
        total = add_product(total, x, y, PRECISION)
    offsets, exist = entries_of(s[:, None], t[None, :], positions, width, rows, columns, COLLECT, COMPACT)
    offsets += item * planes * positions
    if SOFTMAX:
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        m = weights_of(m, exist, t[None, :], stats + item * 2 * positions, positions, SOFTMAX)
        total = m * (total - tl.load(dot + item * positions + t, mask=t < positions, other=0.0)[None, :])
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=exist)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def precision() -> str:
    """Of products of float32."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def tiles(channels: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """First the largest tile that does not spill; float64 holds a three-dimensional product in registers."""
    if dtype == torch.float64:
        return [{"CHANNELS": 8, "OWN": 16, "OTHER": 16, "num_warps": 8, "PRECISION": precision()}]
    first = {"CHANNELS": 128 if channels > 64 else 64, "OWN": 64, "OTHER": 16, "num_warps": 8, "num_stages": 2}
    first["PRECISION"] = precision()
    return tuning.variants(first, {"OWN": 32, "OTHER": 32, "CHANNELS": 64}, {"num_stages": 3})


def value_tiles(channels: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The same of the value's gradient; these spill on no architecture."""
    if dtype == torch.float64:
        return tiles(channels, dtype)
    narrow = {"CHANNELS": 64, "OWN": 32, "OTHER": 16, "num_warps": 8, "num_stages": 2, "PRECISION": precision()}
    broad = {**narrow, "CHANNELS": 128, "OWN": 64, "OTHER": 32}
    return [broad, narrow] if channels > 64 else tuning.variants(narrow, {"num_stages": 3})


def squares(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Of the matrix of sources and receivers."""
    if dtype == torch.float64:
        return [{"CHANNELS": 16, "OWN": 16, "OTHER": 16, "num_warps": 4, "PRECISION": precision()}]
    first = {"CHANNELS": 32, "OWN": 64, "OTHER": 64, "num_warps": 8, "num_stages": 2, "PRECISION": precision()}
    return tuning.variants(first, {"OWN": 32}, {"CHANNELS": 16})


def sizes(value: Tensor, attention: Tensor, rows: int, columns: int) -> tuple[int, ...]:
    """The integers that all kernels take."""
    _, channels, height, width = value.shape
    return channels, height * width, width, rows, columns, attention.shape[1]


def psa(
    value: Tensor, attention: Tensor, mode: str, mask_height: int, mask_width: int, compact: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    """value (N, C, H, W) to the same, and (N, 2, H W) for the backward pass."""
    value, attention = value.contiguous(), attention.contiguous()
    n, channels, height, width = value.shape
    sums = torch.float64 if value.dtype == torch.float64 else torch.float32
    out, stats = value.new_empty(value.shape), value.new_empty(n, 2, height * width if softmax else 0, dtype=sums)
    if n == 0:
        return out, stats
    integers = sizes(value, attention, mask_height, mask_width)
    flags = {"COLLECT": mode == "collect", "COMPACT": compact, "SOFTMAX": softmax}

    def launch(constants: dict) -> None:
        blocks, groups = triton.cdiv(height * width, constants["OWN"]), triton.cdiv(channels, constants["CHANNELS"])
        attend_kernel[(n * blocks * groups,)](
            value, attention, out, stats, *integers, blocks, groups, **flags, **constants
        )

    tuning.run("psa.attend", launch, tiles(channels, value.dtype), MACHINES, value, n, *integers, *flags.values())
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
    value, attention, grad, stats = (x.contiguous() for x in (value, attention, grad, stats))
    n, channels, height, width = value.shape
    grad_value = value.new_empty(value.shape)
    grad_attention = attention.new_empty(attention.shape) if compact else attention.new_zeros(attention.shape)
    if n == 0:
        return grad_value, grad_attention
    integers = sizes(value, attention, mask_height, mask_width)
    flags = {"COLLECT": mode == "collect", "COMPACT": compact, "SOFTMAX": softmax}
    # products in the dtype of the sums, without copies of the maps in it
    dot = torch.addcmul(stats.new_zeros(1), out, grad).sum(1) if softmax else stats

    def of_value(constants: dict) -> None:
        blocks, groups = triton.cdiv(height * width, constants["OWN"]), triton.cdiv(channels, constants["CHANNELS"])
        differentiate_value_kernel[(n * blocks * groups,)](
            grad, attention, stats, grad_value, *integers, blocks, groups, **flags, **constants
        )

    def of_attention(constants: dict) -> None:
        blocks = triton.cdiv(height * width, constants["OTHER"])
        differentiate_attention_kernel[(n * triton.cdiv(height * width, constants["OWN"]) * blocks,)](
            grad, value, attention, stats, dot, grad_attention, *integers, blocks, **flags, **constants
        )

    problem = (value, n, *integers, *flags.values())
    tuning.run("psa.differentiate_value", of_value, value_tiles(channels, value.dtype), MACHINES, *problem)
    tuning.run("psa.differentiate_attention", of_attention, squares(value.dtype), MACHINES, *problem)
    return grad_value, grad_attention


_MAPS, _SUMS = ("value", "attention", "out", "grad"), ("stats", "dot")
_FLAGS = ((True, False, True), (False, False, True), (False, False, False), (True, True, True))


def _aot(kernel: Any, problems: Any) -> Iterator[tuple]:
    for pointer, dtype in (("*fp32", torch.float32), ("*bf16", torch.bfloat16), ("*fp64", torch.float64)):
        types = {**dict.fromkeys(_MAPS, pointer), **dict.fromkeys(_SUMS, pointer.replace("bf16", "fp32"))}
        precisions = ("tf32", "tf32x3") if dtype == torch.float32 else ("tf32",)
        configurations = [
            [{"COLLECT": collect, "COMPACT": compact, "SOFTMAX": softmax, **c, "PRECISION": p} for c in candidates]
            for (collect, compact, softmax), candidates, p in itertools.product(_FLAGS, problems(dtype), precisions)
        ]
        yield kernel, {name: t for name, t in types.items() if name in kernel.arg_names}, configurations


AOT = [
    *_aot(attend_kernel, lambda dtype: [tiles(512, dtype), tiles(64, dtype)]),
    *_aot(differentiate_value_kernel, lambda dtype: [value_tiles(512, dtype), value_tiles(64, dtype)]),
    *_aot(differentiate_attention_kernel, lambda dtype: [squares(dtype)]),
]
