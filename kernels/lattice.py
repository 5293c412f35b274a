"""Builds the permutohedral lattice of a point set on a GPU: sorting in the place of a hash table.

Idea. A vertex is packed into one 64-bit key (the layout of csrc/include/segops/simplex.h). All D+1 keys of all points
are sorted, so that equal keys lie together: that numbers the vertices, finds a vertex's neighbours by binary search,
and gives each vertex the list of points that touch it, always in the same order.

Memory. ``vertex`` and ``weight`` are (D+1, P): neighbouring points read them side by side. The entries, one for each
point and vertex that touch, are sorted by vertex; those of vertex m are ``start[m]`` to ``start[m + 1]``.

Cost, with E = P (D+1) entries: the sort of E keys and two passes over them. One synchronisation, to learn how many
vertices there are; whatever else must be known on the host is read in the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
from torch import Tensor

CHUNK = 128  # a vertex's run of entries is cut at every multiple of this, see splat in permutohedral_filter.py


@dataclass
class Lattice:
    """M vertices of P points (those of all items of a batch); indices are int32, or int64 from 2^31 entries on."""

    vertex: Tensor  # (D+1, P): the vertices of a point
    weight: Tensor  # (D+1, P): its barycentric weights
    start: Tensor  # (M + 1,): where a vertex's entries begin
    owner: Tensor  # (E / CHUNK,): the vertex of entries 0, CHUNK, 2 CHUNK ...
    point: Tensor  # (E,): the point of an entry
    entry_weight: Tensor  # (E,): its weight, times alpha = 1 / (1 + 2^-D), which gives the filter a peak of height 1
    neighbour: Tensor  # (D+1, 2, M): the vertices before and after along each axis, -1 where there is none

    @property
    def vertices(self) -> int:
        return len(self.start) - 1

    def scaled(self, before: Tensor | None, after: Tensor | None) -> Lattice:
        """The lattice that multiplies points (P,) by ``before`` as it splats and by ``after`` as it slices."""
        entry_weight = self.entry_weight if before is None else self.entry_weight * before[self.point]
        return replace(self, entry_weight=entry_weight, weight=self.weight if after is None else self.weight * after)


@dataclass
class Keys:
    """The vertices as sorted keys, before their number is known on the host."""

    features: Tensor
    key: Tensor  # (B, E): sorted
    order: Tensor  # (B, E): where in the unsorted (D+1, P) an entry was
    number: Tensor  # (B E,): which vertex it is
    weight: Tensor  # (D+1, B P)
    status: Tensor  # 0-dimensional: 0 good, 1 too wide, 2 NaN or inf


@triton.jit(do_not_specialize=["dim"])
def simplex_kernel(
    features, key, weight, status, points, blocks, dim, remainder_bits, bits, stride_n, stride_d, stride_p,
    BLOCK: tl.constexpr, COORDS: tl.constexpr,
):  # fmt: skip
    """features (B, D, P) to keys (B, D+1, P) and weights (D+1, B P); status of a block 1: too wide, 2: NaN or inf."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < points
    i = tl.arange(0, COORDS)[None, :]  # the coordinates in the hyperplane, D+1 of them real
    real = features.dtype.element_ty
    size = dim + 1
    one = tl.full([], 1.0, tl.float64)
    root = tl.sqrt(one * 2 / 3) * size
    inverse = (one / size).to(real)

    elevated = tl.zeros([BLOCK, COORDS], real)
    finite = p == p
    place = features + item * stride_n + (dim - 1).to(tl.int64) * stride_d + p * stride_p
    for k in range(dim):  # from the last feature to the first, the order of simplex.h
        j = dim - 1 - k
        value = tl.load(place, mask=inside, other=0.0)
        place -= stride_d
        finite = finite & (tl.abs(value) < float("inf"))
        scaled = (value * (root / tl.sqrt(one * ((j + 1) * (j + 2)))).to(real))[:, None]
        elevated += tl.where(i <= j, scaled, tl.where(i == j + 1, -scaled * (j + 1), 0.0))

    rounded = tl.floor(elevated * inverse + 0.5)
    offset = elevated - rounded * size
    limit = (1 << (bits - 1)) - 3  # room for a step to a neighbour without a carry into the next field
    wide = tl.max(tl.where(i < dim, tl.abs(rounded), 0.0), axis=1).to(tl.float64) > limit
    tl.store(status + tl.program_id(0), tl.max(tl.where(inside, tl.where(finite, wide.to(tl.int32), 2), 0), axis=0))
    quotient = tl.where((finite & (wide == 0))[:, None] & (i <= dim), rounded, 0.0).to(tl.int32)

    rank = tl.zeros([BLOCK, COORDS], tl.int32)  # how many offsets are larger, or equal and of an earlier coordinate
    for j in range(size):
        other = tl.sum(tl.where(i == j, offset, 0.0), axis=1)[:, None]
        rank += ((other > offset) | ((other == offset) & (j < i))).to(tl.int32)
    rank += tl.sum(quotient, axis=1)[:, None]  # the coordinates must sum to 0: move the smallest or largest offsets
    step = (rank < 0).to(tl.int32) - (rank > dim).to(tl.int32)
    rank = tl.where(i <= dim, rank + step * size, -1)
    quotient += step
    offset = (offset - step * size) * inverse

    unit = tl.where(i < dim, tl.full([1, COORDS], 1, tl.int64) << tl.where(i < dim, remainder_bits + i * bits, 0), 0)
    code = tl.sum((quotient.to(tl.int64) + (1 << (bits - 1))) * unit, axis=1)
    above = tl.sum(tl.where(rank == dim, offset, 0.0), axis=1)
    first = 1.0 + above - tl.sum(tl.where(rank == 0, offset, 0.0), axis=1)
    key += item * size * points + p
    weight += item * points + p
    all_points = (tl.num_programs(0) // blocks).to(tl.int64) * points
    tl.store(key, code, mask=inside)
    tl.store(weight, first, mask=inside)
    for r in range(1, size):  # every coordinate grows by 1, the one whose turn it is falls by D+1
        code += 1 - tl.sum(tl.where(rank == size - r, unit, 0), axis=1)
        below = tl.sum(tl.where(rank == dim - r, offset, 0.0), axis=1)
        key += points
        weight += all_points
        tl.store(key, code, mask=inside)
        tl.store(weight, below - above, mask=inside)
        above = below


@triton.jit(do_not_specialize=["dim"])
def number_kernel(
    key, order, number, weight, unique, start, vertex, point, entry_weight, entries, points, all_points, dim,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """From the sorted keys (B, (D+1) P) and their numbers: vertices, their runs of entries, the points' vertices."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < entries
    n = tl.load(number + e, mask=inside, other=0)
    origin = tl.load(order + e, mask=inside, other=0)
    p = e // ((dim + 1).to(tl.int64) * points) * points + origin % points
    place = origin // points * all_points + p
    power = (tl.full([], 1, tl.int64) << dim).to(tl.float64)
    w = tl.load(weight + place, mask=inside, other=0.0)
    tl.store(vertex + place, n, mask=inside)
    tl.store(point + e, p, mask=inside)
    tl.store(entry_weight + e, w * (power / (power + 1.0)).to(w.dtype), mask=inside)  # alpha, for a peak of height 1
    first = inside & ((e == 0) | (tl.load(number + e - 1, mask=inside & (e > 0), other=0) != n))
    tl.store(start + n, e, mask=first)
    tl.store(unique + n, tl.load(key + e, mask=first, other=0), mask=first)


@triton.jit(do_not_specialize=["dim"])
def neighbour_kernel(
    unique, start, item_start, neighbour, vertices, steps, entries, dim, remainder_bits, bits, all_units,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One axis: the vertex after each vertex by binary search among the sorted keys; the one before by symmetry."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.program_id(1)
    inside = m < vertices
    here = tl.load(unique + m, mask=inside, other=0)
    remainder = here & ((1 << remainder_bits) - 1)
    unit = tl.where(axis < dim, tl.full([], 1, tl.int64) << tl.where(axis < dim, remainder_bits + axis * bits, 0), 0)
    target = tl.where(remainder < dim, here + 1, here - dim + all_units) - unit
    item = tl.load(start + m, mask=inside, other=0) // entries
    low = tl.load(item_start + item, mask=inside, other=0).to(tl.int64)
    end = tl.load(item_start + item + 1, mask=inside, other=0).to(tl.int64)
    high = end
    for _ in range(steps):
        middle = (low + high) // 2
        less = tl.load(unique + middle, mask=low < high, other=0) < target
        low, high = tl.where((low < high) & less, middle + 1, low), tl.where((low < high) & (less == 0), middle, high)
    found = inside & (tl.load(unique + low, mask=inside & (low < end), other=-1) == target)
    before = neighbour + axis.to(tl.int64) * 2 * vertices
    tl.store(before + vertices + m, low, mask=found)
    tl.store(before + low, m, mask=found)


def key_layout(dim: int) -> tuple[int, int]:
    """Bits of the remainder and of each of the ``dim`` quotients; 63 in all."""
    remainder = dim.bit_length()
    return remainder, max(1, min(31, (63 - remainder) // dim))


def sort_keys(features: Tensor) -> Keys:
    """features (B, D, P), everything that needs no synchronisation."""
    batch, dim, points = features.shape
    entries = (dim + 1) * points
    coords = next_power_of_2(dim + 1)
    block = max(1, 1024 // coords)
    blocks = cdiv(points, block)
    key = features.new_empty((batch, entries), dtype=torch.int64)
    weight = features.new_empty((dim + 1, batch * points))
    status = features.new_empty(batch * blocks, dtype=torch.int32)
    simplex_kernel[(batch * blocks,)](
        features, key, weight, status, points, blocks, dim, *key_layout(dim), *features.stride(),
        BLOCK=block, COORDS=coords, enable_fp_fusion=False,  # every rounding as on a CPU, for points on a cell's face
    )  # fmt: skip
    key, order = key.sort(dim=1, stable=True)  # stable: a vertex's entries stay in the order of the points
    first = torch.ones_like(key, dtype=torch.bool)  # also where one item ends and the next begins with an equal key
    torch.ne(key[:, 1:], key[:, :-1], out=first[:, 1:])
    index = torch.int32 if first.numel() < 2**31 else torch.int64
    number = first.flatten().cumsum(0, dtype=index) - 1
    return Keys(features, key, order, number, weight, status.amax())


def number_vertices(keys: Keys, vertices: int) -> Lattice:
    """The lattice, once it is known how many vertices there are."""
    batch, dim, points = keys.features.shape
    entries = keys.number.numel()
    start = torch.full_like(keys.number[:1], entries).repeat(vertices + 1)
    unique = keys.key.new_empty(vertices)
    vertex = keys.number.new_empty((dim + 1, batch * points))
    point, entry_weight = torch.empty_like(keys.number), keys.weight.new_empty(entries)
    number_kernel[(cdiv(entries, 512),)](
        keys.key, keys.order, keys.number, keys.weight, unique, start, vertex, point, entry_weight,
        entries, points, batch * points, dim, BLOCK=512,
    )  # fmt: skip
    item_start = torch.cat([keys.number.view(batch, -1)[:, 0], torch.full_like(start[:1], vertices)])
    neighbour = torch.full_like(start[:1], -1).repeat(dim + 1, 2, vertices)
    remainder_bits, bits = key_layout(dim)
    neighbour_kernel[(cdiv(vertices, 256), dim + 1)](
        unique, start, item_start, neighbour, vertices, vertices.bit_length(), entries // batch, dim, remainder_bits,
        bits, sum(1 << (remainder_bits + i * bits) for i in range(dim)), BLOCK=256,
    )  # fmt: skip
    owner = keys.number[::CHUNK].contiguous()
    return Lattice(vertex, keys.weight, start, owner, point, entry_weight, neighbour)


def build_lattices(
    features: Sequence[Tensor], names: Sequence[str], conditions: Sequence[tuple[Tensor, str]] = ()
) -> list[Lattice]:
    """The lattices of several features (B, D, P), P > 0.

    A ``condition`` (flag, message) that holds on the device is raised as a ValueError: it waits for the same
    synchronisation.
    """
    parts = [sort_keys(f) for f in features]
    report = [flag for flag, _ in conditions] + [p.status for p in parts] + [p.number[-1] for p in parts]
    report = torch.stack([x.to(torch.int64) for x in report]).tolist()
    for flag, (_, message) in zip(report, conditions):
        if flag:
            raise ValueError(message)
    report = report[len(conditions) :]
    for status, name, part in zip(report, names, parts):
        if status == 2:
            raise ValueError(f"{name}: expected finite values, got NaN or inf")
        if status == 1:
            raise ValueError(
                f"{name}: D={part.features.shape[1]}, values span too many lattice cells for packed keys; "
                "use larger sigmas"
            )
    return [number_vertices(part, last + 1) for part, last in zip(parts, report[len(parts) :])]


def join(lattices: Sequence[Lattice], points: int) -> Lattice:
    """Several lattices as one of ``points`` points: its slice is the sum of theirs.

    A lattice of fewer points is repeated, as features that a batch shares. The vertices of the first come first. Those
    of a lattice with fewer axes have no neighbours along the rest, where the blur then leaves them alone.
    """
    axes = max(len(x.neighbour) for x in lattices)
    copies = [points // x.vertex.shape[1] for x in lattices]
    entries = sum(n * len(x.point) for n, x in zip(copies, lattices))
    index = torch.int32 if entries < 2**31 else torch.int64
    parts, row, entry = [], 0, 0
    for n, x in zip(copies, lattices):
        copy = torch.arange(n, dtype=index, device=x.vertex.device)[:, None]
        rows, begins = row + copy * x.vertices, entry + copy * len(x.point)
        neighbour = torch.where(x.neighbour[:, :, None] < 0, -1, x.neighbour[:, :, None] + rows).flatten(2)
        parts.append((
            (x.vertex[:, None] + rows).flatten(1), x.weight.repeat(1, n), (x.start[:-1] + begins).flatten(),
            (x.point + copy * x.vertex.shape[1]).flatten(), x.entry_weight.repeat(n),
            torch.nn.functional.pad(neighbour, (0, 0, 0, 0, 0, axes - len(neighbour)), value=-1),
        ))  # fmt: skip
        row, entry = row + n * x.vertices, entry + n * len(x.point)
    vertex, weight, start, point, entry_weight, neighbour = zip(*parts)
    start = torch.cat([*start, torch.full_like(start[0][:1], entries)])
    cuts = torch.arange(0, entries, CHUNK, dtype=index, device=start.device)
    owner = torch.searchsorted(start, cuts, right=True, out_int32=index == torch.int32) - 1
    return Lattice(
        torch.cat(vertex), torch.cat(weight), start, owner, torch.cat(point), torch.cat(entry_weight),
        torch.cat(neighbour, dim=2),
    )  # fmt: skip


AOT = [
    (
        simplex_kernel,
        {"features": "*T", "key": "*i64", "weight": "*T", "status": "*i32"},
        [{"BLOCK": 1024 // coords, "COORDS": coords, "enable_fp_fusion": False} for coords in (8, 4, 2, 16, 32)],
    ),
    (
        number_kernel,
        {"key": "*i64", "order": "*i64", "number": "*i32", "weight": "*T", "unique": "*i64", "start": "*i32"}
        | {"vertex": "*i32", "point": "*i32", "entry_weight": "*T"},
        [{"BLOCK": 512}],
    ),
    (
        neighbour_kernel,
        {"unique": "*i64", "start": "*i32", "item_start": "*i32", "neighbour": "*i32", "all_units": "i64"},
        [{"BLOCK": 256}],
    ),
]
