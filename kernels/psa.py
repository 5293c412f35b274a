"""Point-wise spatial attention on a GPU: tiles of the matrix of sources and receivers, never the matrix.

Idea. A program has a block of receivers and of channels and goes over all sources: it gathers a tile of logits from the
attention map, keeps the largest and the sum of the exponentials of each receiver so far, and multiplies with the value
while the tile is in registers. The first block of channels leaves the two numbers for the backward pass. There a
program has sources and channels, makes the weights anew and multiplies with the gradient of the result; and a program
for each tile of the matrix multiplies value and gradient over all channels and scatters what belongs to the attention.
An entry belongs to one source and receiver, so nothing is added up, and results repeat.

Precision. float32 products are split into three TF32 products, which keeps about 22 bits; float64 does without tensor
cores; halves are widened first.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from segops.kernels.tile_product import product
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import wide


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
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """out (C, P) = value m for a block of receivers; stats (2, P): the largest logit, the sum of exponentials."""
    item, t, c = place(blocks, groups, OWN, CHANNELS)
    value += item * channels * positions
    attention += item * planes * positions
    dtype = value.dtype.element_ty
    total = tl.zeros([CHANNELS, OWN], dtype)
    largest = tl.full([OWN], float("-inf"), dtype)
    sums = tl.zeros([OWN], dtype)
    for first in range(0, positions, OTHER):
        s = first + tl.arange(0, OTHER)
        offsets, exist = entries_of(s[:, None], t[None, :], positions, width, rows, columns, COLLECT, COMPACT)
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        if SOFTMAX:
            m = tl.where((s < positions)[:, None], m, float("-inf"))
            most = tl.maximum(largest, tl.max(m, axis=0))
            least = tl.where(most == float("-inf"), 0.0, most)  # no logit but -inf yet: their distance is no number
            m = tl.exp(m - least[None, :])
            decay = tl.exp(largest - least)
            sums = sums * decay + tl.sum(m, axis=0)
            total *= decay[None, :]
            largest = most
        total += product(load_map(value, c[:, None], s[None, :], channels, positions), m)
    if SOFTMAX:
        total /= sums[None, :]
        if tl.program_id(0) % groups == 0:
            stats += item * 2 * positions
            tl.store(stats + t, largest, mask=t < positions)
            tl.store(stats + positions + t, sums, mask=t < positions)
    mask = (c < channels)[:, None] & (t < positions)[None, :]
    tl.store(out + (item * channels + c)[:, None] * positions + t[None, :], total, mask=mask)


@triton.jit
def weights_of(m, exist, t, stats, positions, SOFTMAX: tl.constexpr):
    """Logits to weights, by the numbers that the forward pass left of the receivers t; 0 beyond the map."""
    if SOFTMAX:
        largest = tl.load(stats + t, mask=t < positions, other=0.0)
        sums = tl.load(stats + positions + t, mask=t < positions, other=1.0)
        m = tl.where(exist, tl.exp(m - largest) / sums, 0.0)
    return m


@triton.jit
def differentiate_value_kernel(
    grad, attention, stats, out, channels, positions, width, rows, columns, planes, blocks, groups,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """out (C, P) = grad m^T for a block of sources."""
    item, s, c = place(blocks, groups, OWN, CHANNELS)
    grad += item * channels * positions
    attention += item * planes * positions
    stats += item * 2 * positions
    total = tl.zeros([CHANNELS, OWN], grad.dtype.element_ty)
    for first in range(0, positions, OTHER):
        t = first + tl.arange(0, OTHER)
        offsets, exist = entries_of(s[None, :], t[:, None], positions, width, rows, columns, COLLECT, COMPACT)
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        m = weights_of(m, (t < positions)[:, None], t[:, None], stats, positions, SOFTMAX)
        total += product(load_map(grad, c[:, None], t[None, :], channels, positions), m)
    mask = (c < channels)[:, None] & (s < positions)[None, :]
    tl.store(out + (item * channels + c)[:, None] * positions + s[None, :], total, mask=mask)


@triton.jit
def differentiate_attention_kernel(
    grad, value, attention, stats, dot, out, channels, positions, width, rows, columns, planes, blocks,
    COLLECT: tl.constexpr, COMPACT: tl.constexpr, SOFTMAX: tl.constexpr,
    CHANNELS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """The entries of a block of sources and one of receivers; dot (P) is the product of result and gradient."""
    tile = tl.program_id(0) // blocks
    t = tl.program_id(0) % blocks * OTHER + tl.arange(0, OTHER)
    s = tile % tl.cdiv(positions, OWN) * OWN + tl.arange(0, OWN)
    item = (tile // tl.cdiv(positions, OWN)).to(tl.int64)
    grad += item * channels * positions
    value += item * channels * positions
    total = tl.zeros([OWN, OTHER], grad.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        x = load_map(value, c[None, :], s[:, None], channels, positions)
        total += product(x, load_map(grad, c[:, None], t[None, :], channels, positions))
    offsets, exist = entries_of(s[:, None], t[None, :], positions, width, rows, columns, COLLECT, COMPACT)
    offsets += item * planes * positions
    if SOFTMAX:
        m = tl.load(attention + offsets, mask=exist, other=0.0)
        m = weights_of(m, exist, t[None, :], stats + item * 2 * positions, positions, SOFTMAX)
        total = m * (total - tl.load(dot + item * positions + t, mask=t < positions, other=0.0)[None, :])
    tl.store(out + offsets, total, mask=exist)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def tiles(channels: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """First the largest tile that does not spill; float64 holds a three-dimensional product in registers."""
    if dtype == torch.float64:
        return [{"CHANNELS": 8, "OWN": 16, "OTHER": 16, "num_warps": 8}]
    first = {"CHANNELS": 128 if channels > 64 else 64, "OWN": 64, "OTHER": 16, "num_warps": 8, "num_stages": 2}
    return tuning.variants(first, {"OWN": 32, "OTHER": 32, "CHANNELS": 64}, {"num_stages": 3})


def value_tiles(channels: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """The same of the value's gradient; these spill on no architecture."""
    if dtype == torch.float64:
        return tiles(channels, dtype)
    narrow = {"CHANNELS": 64, "OWN": 32, "OTHER": 16, "num_warps": 8, "num_stages": 2}
    broad = {**narrow, "CHANNELS": 128, "OWN": 64, "OTHER": 32}
    return [broad, narrow] if channels > 64 else tuning.variants(narrow, {"num_stages": 3})


def squares(dtype: torch.dtype) -> list[dict[str, int]]:
    """Of the matrix of sources and receivers."""
    if dtype == torch.float64:
        return [{"CHANNELS": 16, "OWN": 16, "OTHER": 16, "num_warps": 4}]
    first = {"CHANNELS": 32, "OWN": 64, "OTHER": 64, "num_warps": 8, "num_stages": 2}
    return tuning.variants(first, {"OWN": 32}, {"CHANNELS": 16})


def sizes(value: Tensor, attention: Tensor, rows: int, columns: int) -> tuple[int, ...]:
    """The integers that all kernels take."""
    _, channels, height, width = value.shape
    return channels, height * width, width, rows, columns, attention.shape[1]


def psa(
    value: Tensor, attention: Tensor, mode: str, mask_height: int, mask_width: int, compact: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    """value (N, C, H, W) to the same, and (N, 2, H W) for the backward pass."""
    dtype, value, attention = value.dtype, wide(value).contiguous(), wide(attention).contiguous()
    n, channels, height, width = value.shape
    out, stats = value.new_empty(value.shape), value.new_empty(n, 2, height * width if softmax else 0)
    if n == 0:
        return out.to(dtype), stats
    integers = sizes(value, attention, mask_height, mask_width)
    flags = {"COLLECT": mode == "collect", "COMPACT": compact, "SOFTMAX": softmax}

    def launch(constants: dict) -> None:
        blocks, groups = triton.cdiv(height * width, constants["OWN"]), triton.cdiv(channels, constants["CHANNELS"])
        attend_kernel[(n * blocks * groups,)](
            value, attention, out, stats, *integers, blocks, groups, **flags, **constants
        )

    tuning.run("psa.attend", launch, tiles(channels, value.dtype), MACHINES, value, n, *integers, *flags.values())
    return out.to(dtype), stats


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
    dtype, out = value.dtype, wide(out)
    value, attention, grad, stats = (wide(x).contiguous() for x in (value, attention, grad, stats))
    n, channels, height, width = value.shape
    grad_value = value.new_empty(value.shape)
    grad_attention = attention.new_empty(attention.shape) if compact else attention.new_zeros(attention.shape)
    if n == 0:
        return grad_value.to(dtype), grad_attention.to(dtype)
    integers = sizes(value, attention, mask_height, mask_width)
    flags = {"COLLECT": mode == "collect", "COMPACT": compact, "SOFTMAX": softmax}
    dot = (out * grad).sum(1) if softmax else grad

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
    return grad_value.to(dtype), grad_attention.to(dtype)


_POINTERS = ("value", "attention", "out", "stats", "grad", "dot")
_FLAGS = ((True, False, True), (False, False, True), (False, False, False), (True, True, True))


def _aot(kernel: Any, problems: Any) -> list[tuple]:
    return [
        (
            kernel,
            {name: t if name in _POINTERS else "i32" for name in kernel.arg_names},
            [
                [{"COLLECT": collect, "COMPACT": compact, "SOFTMAX": softmax, **c} for c in candidates]
                for collect, compact, softmax in _FLAGS
                for candidates in problems(dtype)
            ],
        )
        for t, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64))
    ]


AOT = (
    _aot(attend_kernel, lambda dtype: [tiles(512, dtype), tiles(64, dtype)])
    + _aot(differentiate_value_kernel, lambda dtype: [value_tiles(512, dtype), value_tiles(64, dtype)])
    + _aot(differentiate_attention_kernel, lambda dtype: [squares(dtype)])
)
