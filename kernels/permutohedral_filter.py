"""The permutohedral filter on a GPU (Adams, Baek and Davis 2010): no atomics, the same bits every run.

Idea. With the entries sorted by vertex (lattice.py), the splat is no scatter but a sum over a vertex's run of entries,
in a fixed order. Runs are cut at every multiple of CHUNK, so that a vertex which a million points touch does not keep
a single program busy: ``splat_kernel`` sums the pieces, ``carry_kernel`` adds those of one vertex.

Memory. Points and vertices are rows of channels, a row contiguous and padded by ``new_rows``: what a splat, a blur or a
slice gathers is one stretch of memory.

Cost, with E = P (D+1) entries, M vertices and V channels: E rows read twice (splat, slice), M rows read three times and
written once for each of the D+1 axes of the blur.
"""

from __future__ import annotations

import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
from segops.kernels.lattice import CHUNK, Lattice, build_lattices
from torch import Tensor


@triton.jit
def splat_kernel(
    values, table, start, owner, point, weight, vertices, rows, channels, value_stride, table_stride,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Row m < M of the table: the entries of vertex m up to a multiple of CHUNK. Row M + k: of chunk k, those that
    belong to a vertex begun before it."""
    row = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    later = (row >= vertices) & (row < rows)
    vertex = tl.where(later, tl.load(owner + row - vertices, mask=later, other=0).to(tl.int64), row)
    begin = tl.load(start + vertex, mask=row < rows, other=0).to(tl.int64)
    end = tl.load(start + vertex + 1, mask=row < rows, other=0).to(tl.int64)
    chunk = tl.where(later, row - vertices, begin // CHUNK)
    first = tl.maximum(begin, chunk * CHUNK)
    end = tl.where(later & (first == begin), first, tl.minimum(end, (chunk + 1) * CHUNK))
    total = tl.zeros([BLOCK, CHANNELS], values.dtype.element_ty)
    for step in tl.range(0, tl.max(tl.max(end - first, axis=1), axis=0), loop_unroll_factor=4):
        entry = first + step
        p = tl.load(point + entry, mask=entry < end, other=0).to(tl.int64)
        w = tl.load(weight + entry, mask=entry < end, other=0.0)
        total += w * tl.load(values + p * value_stride + c, mask=(entry < end) & (c < channels), other=0.0)
    tl.store(table + row * table_stride + c, total, mask=(row < rows) & (c < channels))


@triton.jit
def carry_kernel(
    table, start, vertices, channels, stride, CHUNK: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr
):
    """Add to the vertices whose run crosses a multiple of CHUNK the rows M + k of the chunks it goes on in."""
    row = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    first = tl.load(start + row, mask=row < vertices, other=0).to(tl.int64) // CHUNK + 1
    end = (tl.load(start + row + 1, mask=row < vertices, other=0).to(tl.int64) + CHUNK - 1) // CHUNK
    longest = tl.max(tl.max(end - first, axis=1), axis=0)
    if longest > 0:
        mask = (row < vertices) & (c < channels)
        total = tl.load(table + row * stride + c, mask=mask, other=0.0)
        for step in tl.range(0, longest, loop_unroll_factor=4):
            chunk = first + step
            total += tl.load(table + (vertices + chunk) * stride + c, mask=mask & (chunk < end), other=0.0)
        tl.store(table + row * stride + c, total, mask=mask)


@triton.jit
def blur_kernel(table, out, neighbour, vertices, channels, stride, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """(1/2, 1, 1/2) along one axis; ``neighbour`` (2, M) is -1 where there is none."""
    row = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    mask = (row < vertices) & (c < channels)
    before = tl.load(neighbour + row, mask=row < vertices, other=-1).to(tl.int64)
    after = tl.load(neighbour + vertices + row, mask=row < vertices, other=-1).to(tl.int64)
    sides = tl.load(table + before * stride + c, mask=mask & (before >= 0), other=0.0)
    sides += tl.load(table + after * stride + c, mask=mask & (after >= 0), other=0.0)
    here = tl.load(table + row * stride + c, mask=mask, other=0.0)
    tl.store(out + row * stride + c, here + 0.5 * sides, mask=mask)


@triton.jit
def gather(table, vertex, weight, p, inside, c, channels, all_points, corners, stride):
    """The slice: for points p (B, 1) and channels c (1, C), the sum over their vertices of weight times row."""
    total = tl.zeros([p.shape[0], c.shape[1]], table.dtype.element_ty)
    for _ in tl.range(0, corners, loop_unroll_factor=3):
        row = tl.load(vertex + p, mask=inside, other=0).to(tl.int64)
        w = tl.load(weight + p, mask=inside, other=0.0)
        total += w * tl.load(table + row * stride + c, mask=inside & (c < channels), other=0.0)
        p += all_points
    return total


@triton.jit
def slice_kernel(
    table, vertex, weight, out, points, blocks, channels, all_points, corners, stride,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """To out (items, channels, points)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = ((tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    total = gather(table, vertex, weight, item * points + p, p < points, c, channels, all_points, corners, stride)
    tl.store(out + (item * channels + c) * points + p, total, mask=(p < points) & (c < channels))


def new_rows(count: int, channels: int, like: Tensor) -> Tensor:
    """Uninitialised (count, channels), each row padded to a power of two or a multiple of 16."""
    padded = next_power_of_2(channels) if channels <= 16 else cdiv(channels, 16) * 16
    return like.new_empty((count, padded))[:, :channels]


CARRY_WARPS = 8  # with fewer, float64 spills on sm_100


def tiling(rows: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and tile of a kernel over rows of channels: 1024 elements to a program, less where rows are short."""
    width = min(64, next_power_of_2(channels))
    tile = {"BLOCK": min(256, 1024 // width), "CHANNELS": width}
    return (cdiv(rows, tile["BLOCK"]), cdiv(channels, width)), tile


def splat(lattice: Lattice, values: Tensor) -> Tensor:
    """Rows (P, V) at points to rows (M, V) at vertices."""
    vertices, channels = lattice.vertices, values.shape[1]
    rows = vertices + len(lattice.owner)
    table = new_rows(rows, channels, values)
    grid, tile = tiling(rows, channels)
    splat_kernel[grid](
        values, table, lattice.start, lattice.owner, lattice.point, lattice.entry_weight, vertices, rows, channels,
        values.stride(0), table.stride(0), CHUNK=CHUNK, **tile,
    )  # fmt: skip
    grid, tile = tiling(vertices, channels)
    carry_kernel[grid](
        table, lattice.start, vertices, channels, table.stride(0), CHUNK=CHUNK, **tile, num_warps=CARRY_WARPS
    )
    return table[:vertices]


def blur(lattice: Lattice, table: Tensor, reverse: bool = False) -> Tensor:
    """Along each axis in turn, in order 0..D or, for the adjoint, D..0. Overwrites ``table``."""
    other = new_rows(*table.shape, table)
    grid, tile = tiling(*table.shape)
    for neighbour in reversed(lattice.neighbour) if reverse else lattice.neighbour:
        blur_kernel[grid](table, other, neighbour, *table.shape, table.stride(0), **tile)
        table, other = other, table
    return table


def slice_table(lattice: Lattice, table: Tensor, out: Tensor) -> Tensor:
    """Rows (M, V) at vertices to ``out`` (items, V, points), contiguous."""
    items, channels, points = out.shape
    (blocks, channel_blocks), tile = tiling(points, channels)
    slice_kernel[items * blocks, channel_blocks](
        table, lattice.vertex, lattice.weight, out, points, blocks, channels, items * points, len(lattice.vertex),
        table.stride(0), **tile,
    )  # fmt: skip
    return out


def permutohedral_filter(values: Tensor, features: Tensor, reverse: bool = False) -> Tensor:
    """values (N, V, P), features (N or 1, D, P) to (N, V, P)."""
    out = values.new_empty(values.shape)
    if out.numel() == 0:
        return out
    (lattice,) = build_lattices([features], ["features"])
    batch, points = features.shape[0], features.shape[2]
    by_lattice = values.reshape(batch, -1, points)  # a lattice that all items share has the channels of all of them
    rows = new_rows(batch * points, by_lattice.shape[1], values)
    rows.unflatten(0, (batch, points)).copy_(by_lattice.transpose(1, 2))
    slice_table(lattice, blur(lattice, splat(lattice, rows), reverse), out.view(by_lattice.shape))
    return out


_TILES = [tiling(10**6, channels)[1] for channels in (21, 1, 64)]
_CHUNKS = [{"CHUNK": CHUNK, **tile} for tile in _TILES]
_ENTRIES = {"start": "*i32", "owner": "*i32", "point": "*i32", "weight": "*T"}
AOT = [
    (splat_kernel, {"values": "*T", "table": "*T", **_ENTRIES}, _CHUNKS),
    (carry_kernel, {"table": "*T", "start": "*i32"}, [{**c, "num_warps": CARRY_WARPS} for c in _CHUNKS]),
    (blur_kernel, {"table": "*T", "out": "*T", "neighbour": "*i32"}, _TILES),
    (slice_kernel, {"table": "*T", "vertex": "*i32", "weight": "*T", "out": "*T"}, _TILES),
]
