"""Interlaced attention on a GPU: products of the groups of a relation, read from the map where they lie.

Idea. A program has tiles of up to 8 groups side by side, so that what it reads lies side by side in the map too, in
lattices as in blocks, and multiplies them as a batch. One kernel takes the scalar products of pixels (energies, and the
gradients of weights), one the sums of channels by weights (the result, and all gradients); the softmax between them is
torch's. The maps are not copied, programs add in a fixed order, and there are no atomics.

Memory. The weights of the groups at hand, as many numbers a pixel as its group has members, in slabs of at most 2^25:
with the paper's 256 channels of queries and keys it costs more to make the weights again for every tile of channels
than to write them once.

Precision. Sums are float32. float32 products are split into three TF32 products, which keeps about 22 bits, unless
torch.backends.cuda.matmul.allow_tf32 is set; halves are multiplied as they are, weights, which are float32 in memory,
rounded to the maps' dtype; float64 does without tensor cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
from segops.kernels.tile_product import WIDEN, precision
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import sum_dtype

SLAB = 1 << 25  # weights that are in memory at a time, if a row of groups has no more


@triton.jit
def add_products(total, a, b, PRECISION: tl.constexpr):
    """total (G, I, J) and a (G, I, K) times b (G, K, J); see tile_product.add_product."""
    if a.dtype == tl.float64:
        total += tl.sum(a[:, :, :, None] * b[:, None, :, :], axis=2)
    elif WIDEN:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def along(group, size, factor, before, LOCAL: tl.constexpr):
    """First member and number of members of a group, along one side of the map."""
    if LOCAL:
        begin = tl.maximum(group * factor - before, 0)
        count = tl.minimum((group + 1) * factor - before, size) - begin
    else:
        begin = group
        count = (size - group + factor - 1) // factor
    return begin, tl.maximum(count, 0)


@triton.jit
def members(strip, group, m, height, width, rows, columns, top, left, down, across, LOCAL: tl.constexpr):
    """Where members m of the groups lie in a plane, and whether there are such (groups, members)."""
    y, in_column = along(strip % down, height, rows, top, LOCAL)
    x, in_row = along(group, width, columns, left, LOCAL)
    in_row = tl.where(group < across, in_row, 0)[:, None]
    i, j = m[None, :] // tl.maximum(in_row, 1), m[None, :] % tl.maximum(in_row, 1)
    if not LOCAL:
        i, j = i * rows, j * columns
    at = (y + i).to(tl.int64) * width + x[:, None] + j
    return at, m[None, :] < in_column * in_row


@triton.jit
def spread(at, LOCAL: tl.constexpr):
    """(groups, members) before a dimension of channels, what lies side by side in the map last."""
    if LOCAL:
        out = at[None, :, :]
    else:
        out = tl.permute(at, (1, 0))[None, :, :]
    return out


@triton.jit
def load_tile(x, c, at, here, channels, plane, LOCAL: tl.constexpr):
    """x (channels, plane) at channels c and pixels, (groups, members, channels)."""
    mask = (c < channels)[:, None, None] & spread(here, LOCAL)
    tile = tl.load(x + c[:, None, None] * plane + spread(at, LOCAL), mask=mask, other=0.0)
    if LOCAL:
        out = tl.permute(tile, (1, 2, 0))
    else:
        out = tl.permute(tile, (2, 1, 0))
    return out


@triton.jit
def place(first, across, most, GROUPS: tl.constexpr, OWN: tl.constexpr):
    """Strip in the slab, groups, members and first number of each group's weights of a program."""
    tiles = (most + OWN - 1) // OWN
    group_tiles = (across + GROUPS - 1) // GROUPS
    tile = tl.program_id(0) // tiles
    i = tl.program_id(0) % tiles * OWN + tl.arange(0, OWN)
    group = tile % group_tiles * GROUPS + tl.arange(0, GROUPS)
    strip = tile // group_tiles
    table = (strip.to(tl.int64) * across + group) * most * most
    return first + strip, group, i, table[:, None, None]


@triton.jit
def energy_kernel(
    own, other, scale, out, first, channels, height, width, rows, columns, top, left, down, across, most, beyond,
    LOCAL: tl.constexpr, GROUPS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """scale times scalar products of members, (strips, groups, most, most); `beyond` behind the last member."""
    strip, group, i, table = place(first, across, most, GROUPS, OWN)
    j = tl.program_id(1) * OTHER + tl.arange(0, OTHER)
    at_i, is_i = members(strip, group, i, height, width, rows, columns, top, left, down, across, LOCAL)
    at_j, is_j = members(strip, group, j, height, width, rows, columns, top, left, down, across, LOCAL)
    plane = height.to(tl.int64) * width
    own += (strip // down).to(tl.int64) * channels * plane
    other += (strip // down).to(tl.int64) * channels * plane
    total = tl.zeros([GROUPS, OWN, OTHER], out.dtype.element_ty)
    for begin in range(0, channels, DEPTH):
        c = begin + tl.arange(0, DEPTH).to(tl.int64)
        a = load_tile(own, c, at_i, is_i, channels, plane, LOCAL)
        b = load_tile(other, c, at_j, is_j, channels, plane, LOCAL)
        total = add_products(total, a, tl.permute(b, (0, 2, 1)), PRECISION)
    total = tl.where(is_j[:, None, :], total * tl.load(scale), tl.load(beyond))
    mask = (group < across)[:, None, None] & (i < most)[None, :, None] & (j < most)[None, None, :]
    tl.store(out + table + i[None, :, None] * most + j[None, None, :], total, mask=mask)


@triton.jit
def combine_kernel(
    weights, values, out, first, channels, height, width, rows, columns, top, left, down, across, most,
    TRANSPOSED: tl.constexpr, LOCAL: tl.constexpr,
    GROUPS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of the values of a group's members by weights (own, other), or by these transposed."""
    strip, group, i, table = place(first, across, most, GROUPS, OWN)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    plane = height.to(tl.int64) * width
    values += (strip // down).to(tl.int64) * channels * plane
    out += (strip // down).to(tl.int64) * channels * plane
    at_i, is_i = members(strip, group, i, height, width, rows, columns, top, left, down, across, LOCAL)
    total = tl.zeros([GROUPS, OWN, CHANNELS], weights.dtype.element_ty)
    for begin in range(0, most, OTHER):
        j = begin + tl.arange(0, OTHER)
        at_j, is_j = members(strip, group, j, height, width, rows, columns, top, left, down, across, LOCAL)
        if TRANSPOSED:
            mask = is_j[:, :, None] & is_i[:, None, :]
            w = tl.load(weights + table + j[None, :, None] * most + i[None, None, :], mask=mask, other=0.0)
            w = tl.permute(w, (0, 2, 1))
        else:
            mask = is_i[:, :, None] & is_j[:, None, :]
            w = tl.load(weights + table + i[None, :, None] * most + j[None, None, :], mask=mask, other=0.0)
        x = load_tile(values, c, at_j, is_j, channels, plane, LOCAL)
        total = add_products(total, w.to(x.dtype), x, PRECISION)
    mask = (c < channels)[:, None, None] & spread(is_i, LOCAL)
    if LOCAL:
        total = tl.permute(total, (2, 0, 1))
    else:
        total = tl.permute(total, (2, 1, 0))
    tl.store(out + c[:, None, None] * plane + spread(at_i, LOCAL), total.to(out.dtype.element_ty), mask=mask)


class Groups(NamedTuple):
    """The groups of a relation: `down` strips of `across` groups an image, with at `most` so many members each."""

    height: int
    width: int
    rows: int
    columns: int
    top: int
    left: int
    down: int
    across: int
    most: int


def groups_of(x: Tensor, down_factor: Sequence[int], relation: str) -> Groups:
    height, width = x.shape[2:]
    rows, columns = min(down_factor[0], height), min(down_factor[1], width)  # a larger one means the same
    top, left = -height % rows // 2, -width % columns // 2
    blocks = cdiv(height, rows), cdiv(width, columns)
    (down, across), (tall, wide) = (blocks, (rows, columns)) if relation == "local" else ((rows, columns), blocks)
    return Groups(height, width, rows, columns, top, left, down, across, tall * wide)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def tile(dtype: torch.dtype, across: int) -> dict[str, Any]:
    """Tiles that do not spill; float64 holds a four-dimensional product in registers."""
    sizes = {"GROUPS": min(8, next_power_of_2(across)), "num_warps": 8, "num_stages": 1, "PRECISION": precision()}
    if dtype == torch.float64:
        return {**sizes, "OWN": 8, "OTHER": 8}
    return {**sizes, "OWN": 32, "OTHER": 16}


def energy_tiles(dtype: torch.dtype, across: int) -> list[dict[str, Any]]:
    if dtype == torch.float64:
        return [{**tile(dtype, across), "DEPTH": 4}]
    other = 16 if dtype == torch.float32 else 32
    return tuning.variants({**tile(dtype, across), "OTHER": other, "DEPTH": 16}, {"OWN": 16}, {"num_stages": 2})


def combine_tiles(dtype: torch.dtype, across: int) -> list[dict[str, Any]]:
    if dtype == torch.float64:
        return [{**tile(dtype, across), "CHANNELS": 8}]
    return tuning.variants({**tile(dtype, across), "CHANNELS": 32}, {"OWN": 16}, {"CHANNELS": 16})


class Slab:
    """Some strips of groups, all of a kernel's programs for them."""

    def __init__(self, groups: Groups, relation: str, first: int, strips: int):
        self.groups, self.first, self.strips, self.local = groups, first, strips, relation == "local"

    def programs(self, constants: dict) -> int:
        tiles = cdiv(self.groups.across, constants["GROUPS"]) * cdiv(self.groups.most, constants["OWN"])
        return self.strips * tiles

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        """What the time of a launch depends on."""
        return self.strips, self.groups.across, self.groups.most, x.shape[1], self.local

    def products(self, own: Tensor, other: Tensor, scale: Tensor, beyond: Tensor) -> Tensor:
        most = self.groups.most
        out = scale.new_empty(self.strips, self.groups.across, most, most)

        def launch(constants: dict) -> None:
            energy_kernel[self.programs(constants), cdiv(most, constants["OTHER"])](
                own, other, scale, out, self.first, own.shape[1], *self.groups, beyond,
                LOCAL=self.local, **constants,
            )  # fmt: skip

        candidates = energy_tiles(own.dtype, self.groups.across)
        tuning.run("interlaced_attention.energy", launch, candidates, MACHINES, own, *self.sizes(own))
        return out

    def combine(self, weights: Tensor, values: Tensor, out: Tensor, transposed: bool = False) -> None:
        channels = values.shape[1]

        def launch(constants: dict) -> None:
            combine_kernel[self.programs(constants), cdiv(channels, constants["CHANNELS"])](
                weights, values, out, self.first, channels, *self.groups,
                TRANSPOSED=transposed, LOCAL=self.local, **constants,
            )  # fmt: skip

        candidates, sizes = combine_tiles(values.dtype, self.groups.across), (*self.sizes(values), transposed)
        tuning.run("interlaced_attention.combine", launch, candidates, MACHINES, values, *sizes)


def numbers(x: Tensor, *values: float) -> list[Tensor]:
    """In the dtype of the sums of x; as arguments of a launch they would come as float32."""
    return [x.new_full((1,), v, dtype=sum_dtype(x)) for v in values]


def slabs(x: Tensor, down_factor: Sequence[int], relation: str) -> Iterator[Slab]:
    groups = groups_of(x, down_factor, relation)
    strips = x.shape[0] * groups.down
    most = max(1, SLAB // (groups.across * groups.most**2))
    for first in range(0, strips, most):
        yield Slab(groups, relation, first, min(most, strips - first))


def interlaced_attention(
    query: Tensor, key: Tensor, value: Tensor, down_factor: Sequence[int], relation: str, scale: float
) -> Tensor:
    """query, key (N, D, H, W), value (N, C, H, W) to (N, C, H, W)."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    out = torch.empty_like(value)
    if value.numel() == 0:
        return out
    factor, never = numbers(query, scale, -torch.inf)
    for slab in slabs(value, down_factor, relation):
        slab.combine(slab.products(query, key, factor, never).softmax(-1), value, out)
    return out


def interlaced_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, down_factor: Sequence[int], relation: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    grad, query, key, value = grad.contiguous(), query.contiguous(), key.contiguous(), value.contiguous()
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    if value.numel() == 0:
        return grad_query, grad_key, grad_value
    factor, never, zero = numbers(query, scale, -torch.inf, 0.0)
    for slab in slabs(value, down_factor, relation):
        weights = slab.products(query, key, factor, never).softmax(-1)
        slab.combine(weights, grad, grad_value, transposed=True)
        steps = slab.products(grad, value, factor, zero)  # the softmax's gradient is linear: scaled here, and then not
        steps = torch.ops.aten._softmax_backward_data(steps, weights, -1, steps.dtype)
        slab.combine(steps, key, grad_query)
        slab.combine(steps, query, grad_key, transposed=True)
    return grad_query, grad_key, grad_value


def _aot() -> Iterator[tuple[Any, dict[str, str], list[list[dict[str, Any]]]]]:
    maps, sums = ("own", "other", "values"), ("scale", "beyond", "weights")
    for pointer, dtype in (("*fp32", torch.float32), ("*bf16", torch.bfloat16), ("*fp64", torch.float64)):
        wide = pointer.replace("bf16", "fp32")
        precisions = ("tf32", "tf32x3") if dtype == torch.float32 else ("tf32",)
        for kernel, out, candidates, flags in (
            (energy_kernel, wide, energy_tiles, [{}]),
            (combine_kernel, pointer, combine_tiles, [{"TRANSPOSED": t} for t in (False, True)]),
        ):
            types = {**dict.fromkeys(maps, pointer), **dict.fromkeys(sums, wide), "out": out}
            configurations = [
                [{**flag, "LOCAL": local, **c, "PRECISION": p} for c in candidates(dtype, across)]
                for local, across, flag, p in itertools.product((False, True), (8, 2, 1), flags, precisions)
            ]
            yield kernel, {name: t for name, t in types.items() if name in kernel.arg_names}, configurations


AOT = list(_aot())
