"""Non-local attention in its concatenation form on a GPU: one walk along the sorted scores, in chunks.

Idea. See csrc/include/segops/nonlocal_concatenation.h: queries and keys stand in one list, sorted by their score and by
minus their score; what a query gets is the integral, up to its place, of the sum of the values of the keys before it.
Torch sorts. One kernel sums the chunks of the list, torch's cumulative sums in float64 turn these into slope and
integral at the start of each chunk, and a second kernel goes on from there: within a chunk all distances make a small
triangular matrix, and the rest is its product with the values. The gradients take the walk in both directions.

Memory. Maps are transposed first, so that a position is a row and gathering it reads whole lines. Two numbers for each
chunk and channel.

float32 is split into three TF32 products, which keeps about 22 bits; float64 does without tensor cores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.tile_product import product
from torch import Tensor

from segops.kernels import tuning


@triton.jit
def distance(a, b):
    """a - b, 0 for equal places that are infinite."""
    return tl.where(a == b, 0.0, a - b)


@triton.jit
def totals_kernel(
    at, row, sources, slopes, moments, count, chunks, split, channels,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A chunk's sum of sources, and its integral up to the start of the next chunk, both (N, chunks, C)."""
    chunk = tl.program_id(0).to(tl.int64)
    item = chunk // chunks
    at += item * count
    e = chunk % chunks * LENGTH + tl.arange(0, LENGTH)
    r = tl.load(row + item * count + e, mask=e < count, other=0)
    rest = distance(
        tl.load(at + tl.minimum(chunk % chunks * LENGTH + LENGTH, count - 1)),
        tl.load(at + e, mask=e < count, other=0.0),
    )
    sources += (item * (count - split) + (r - split)[:, None]) * channels
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        x = tl.load(sources + c[None, :], mask=(r >= split)[:, None] & (c < channels)[None, :], other=0.0)
        tl.store(slopes + chunk * channels + c, tl.sum(x, axis=0), mask=c < channels)
        far = tl.where((r >= split)[:, None], rest[:, None] * x, 0.0)
        tl.store(moments + chunk * channels + c, tl.sum(far, axis=0), mask=c < channels)


@triton.jit
def walk_kernel(
    at, row, sources, targets, slopes, sums, out, dots, count, chunks, split, channels, divisor,
    LENGTH: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A chunk's targets: the integral by the divisor to out (N, split, C), their products with the slope to dots."""
    chunk = tl.program_id(0).to(tl.int64)
    item = chunk // chunks
    at += item * count
    e = chunk % chunks * LENGTH + tl.arange(0, LENGTH)
    r = tl.load(row + item * count + e, mask=e < count, other=0)
    target = (e < count) & (r < split)
    place = tl.load(at + e, mask=e < count, other=0.0)
    start = distance(place, tl.load(at + chunk % chunks * LENGTH))
    before = (r >= split)[None, :] & (e[None, :] < e[:, None])
    weights = tl.where(before, distance(place[:, None], place[None, :]), 0.0)
    steps = before.to(weights.dtype)
    sources += (item * (count - split) + (r - split)[:, None]) * channels
    targets += (item * split + r[:, None]) * channels
    out += (item * split + r[:, None]) * channels
    dot = tl.zeros([LENGTH], weights.dtype)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        inside = (c < channels)[None, :]
        x = tl.load(sources + c[None, :], mask=(r >= split)[:, None] & inside, other=0.0)
        slope = tl.load(slopes + chunk * channels + c, mask=c < channels, other=0.0)
        if OUT:
            total = tl.load(sums + chunk * channels + c, mask=c < channels, other=0.0)
            total = total[None, :] + start[:, None] * slope[None, :] + product(weights, x)
            tl.store(out + c[None, :], total / divisor, mask=target[:, None] & inside)
        if DOT:
            y = tl.load(targets + c[None, :], mask=target[:, None] & inside, other=0.0)
            dot += tl.sum(y * (slope[None, :] + product(steps, x)), axis=1)
    if DOT:
        tl.store(dots + item * split + r, dot / divisor, mask=target)


class Path(NamedTuple):
    """The sorted list: places (N, E), and rows of which targets come first and sources after them."""

    at: Tensor
    row: Tensor

    def reversed(self, targets: int) -> Path:
        """From the other end, where targets are sources."""
        count = self.row.shape[1]
        return Path(-self.at.flip(1), (self.row.flip(1) - targets) % count)


def sorted_path(query: Tensor, key: Tensor) -> Path:
    """Up the scores. Among equals, queries come first: there the weight is 0, and not above it."""
    places = torch.cat([query, -key], 1) + 0.0  # of -0 makes 0
    first = torch.where(key.isnan(), -torch.inf, places[:, query.shape[1] :])  # where it spoils the right sums
    row = torch.sort(torch.cat([places[:, : query.shape[1]], first], 1), dim=1, stable=True).indices
    return Path(places.gather(1, row), row)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def tiles(dtype: torch.dtype) -> list[dict[str, int]]:
    """float64 holds a three-dimensional product in registers."""
    if dtype == torch.float64:
        return [{"LENGTH": 16, "CHANNELS": 8, "num_warps": 8}]
    first = {"LENGTH": 32, "CHANNELS": 32, "num_warps": 8, "num_stages": 1}
    return tuning.variants(first, {"LENGTH": 16}, {"num_stages": 2})


def rows_of(x: Tensor) -> Tensor:
    """(N, C, P) to (N, P, C)."""
    return x.mT.contiguous()


def walk(path: Path, sources: Tensor, targets: Tensor | None, out: bool, divisor: int) -> tuple[Tensor, Tensor]:
    """Sources (N, S, C) and targets (N, T, C), if given, to the integral (N, T, C) and the targets' products (N, T)."""

    def launch(constants: dict) -> tuple[Tensor, Tensor]:
        return walk_in_chunks(path, sources, targets, out, divisor, constants)

    sizes = (*path.row.shape, sources.shape[2], targets is not None, out)
    return tuning.run("nonlocal_concatenation.walk", launch, tiles(sources.dtype), MACHINES, sources, *sizes)


def walk_in_chunks(
    path: Path, sources: Tensor, targets: Tensor | None, out: bool, divisor: int, constants: dict
) -> tuple[Tensor, Tensor]:
    (items, count), (_, many, channels) = path.row.shape, sources.shape
    split, length = count - many, constants["LENGTH"]
    chunks = cdiv(count, length)
    slopes, moments = sources.new_empty(2, items, chunks, channels)
    totals_kernel[(items * chunks,)](
        path.at, path.row, sources, slopes, moments, count, chunks, split, channels, **constants
    )
    start, end = path.at[:, :-length:length, None], path.at[:, length::length, None]
    before = slopes.cumsum(1, dtype=torch.float64) - slopes
    steps = torch.where(start == end, 0.0, end.double() - start) * before[:, :-1] + moments[:, :-1]
    sums = torch.cat([torch.zeros_like(before[:, :1]), steps.cumsum(1)], 1)
    result, dots = sources.new_empty(items, split if out else 0, channels), sources.new_empty(items, split)
    walk_kernel[(items * chunks,)](
        path.at, path.row, sources, sources if targets is None else targets, before.to(sources.dtype),
        sums.to(sources.dtype), result, dots, count, chunks, split, channels, divisor,
        OUT=out, DOT=targets is not None, **constants,
    )  # fmt: skip
    return result, dots


def nonlocal_concatenation(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    """query_score (N, Q), key_score (N, K), value (N, C, K) to (N, C, Q)."""
    if value.shape[0] == 0:
        return value.new_empty(0, value.shape[1], query_score.shape[1])
    path = sorted_path(query_score, key_score)
    return rows_of(walk(path, rows_of(value), None, True, key_score.shape[1])[0])


def nonlocal_concatenation_backward(
    grad: Tensor, query_score: Tensor, key_score: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query_score, key_score and value."""
    if value.shape[0] == 0:
        return (
            query_score.new_empty(query_score.shape),
            key_score.new_empty(key_score.shape),
            value.new_empty(value.shape),
        )
    path, count = sorted_path(query_score, key_score), key_score.shape[1]
    queries, keys = rows_of(grad), rows_of(value)
    _, grad_query = walk(path, keys, queries, False, count)
    grad_value, grad_key = walk(path.reversed(query_score.shape[1]), queries, keys, True, count)
    return grad_query, grad_key, rows_of(grad_value)


def _aot(dtype: torch.dtype, name: str) -> list[tuple]:
    pointers = {p: f"*{name}" for p in ("at", "sources", "targets", "slopes", "moments", "sums", "out", "dots")}
    types = {**pointers, "row": "*i64"}
    flags = [{"OUT": out, "DOT": dot} for out, dot in ((True, False), (False, True), (True, True))]
    walks = [[{**f, **c} for c in tiles(dtype)] for f in flags]
    return [(totals_kernel, types, [tiles(dtype)]), (walk_kernel, types, walks)]


AOT = _aot(torch.float32, "fp32") + _aot(torch.float64, "fp64")
