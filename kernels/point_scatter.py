"""Values written back to the cells of a map on a GPU.

Where an index comes more than once the last point wins: a pass of atomic maxima finds the winner of each cell, in any
order with one result, and only winners are written. That needs 4 bytes a cell of each image, which all channels share.
The map is copied by torch; values and gradients are read in whatever layout they have.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor

BLOCK, CHANNELS = 128, 8


@triton.jit
def winner_kernel(indices, winner, points, blocks, cells, index_n, index_p, BLOCK: tl.constexpr):
    """The largest number of a point in each cell of winner (N, cells), after a 0 if there is an index of no cell."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    cell = tl.load(indices + item * index_n + p.to(tl.int64) * index_p, mask=p < points, other=0)
    exists = (cell >= 0) & (cell < cells)
    tl.store(winner + tl.zeros_like(p), 0, mask=~exists)
    tl.atomic_max(winner + 1 + item * cells + cell, p, mask=exists & (p < points), sem="relaxed")


@triton.jit
def move_kernel(
    indices, winner, map, values, points, blocks, channels, cells, width, index_n, index_p,
    map_n, map_c, map_h, map_w, value_n, value_c, value_p,
    WRITE: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Between the cells of a map and their values: written to the map, or read from it, then 0 for those that lost."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    there = p.to(tl.int64)
    cell = tl.load(indices + item * index_n + there * index_p, mask=p < points, other=-1)
    exists = (cell >= 0) & (cell < cells)
    won = exists & (tl.load(winner + item * cells + cell, mask=exists, other=-1) == p)
    map += item * map_n + c * map_c + ((cell // width) * map_h + (cell % width) * map_w)[None, :]
    values += item * value_n + c * value_c + there[None, :] * value_p
    mask = (c < channels) & won[None, :]
    if WRITE:
        tl.store(map, tl.load(values, mask=mask), mask=mask)
    else:
        value = tl.load(map, mask=mask, other=0.0)
        tl.store(values, value, mask=(c < channels) & (p < points)[None, :])


def winners(indices: Tensor, cells: int) -> Tensor:
    """The last point of each cell, (N * cells), -1 where there is none. A GPU's check is not waited for."""
    batch, points = indices.shape
    winner = indices.new_full((1 + batch * cells,), -1, dtype=torch.int32)
    blocks = cdiv(points, BLOCK)
    winner_kernel[(batch * blocks,)](indices, winner, points, blocks, cells, *indices.stride(), BLOCK=BLOCK)
    message = f"indices: expected cells from 0 to {cells - 1}"
    if indices.is_cuda:
        torch._assert_async(winner[0], message)
    elif winner[0] == 0:
        raise ValueError(f"{message}, got {int(indices.min())} to {int(indices.max())}")
    return winner[1:]


def move(indices: Tensor, map: Tensor, values: Tensor, write: bool) -> None:
    """Fill the map, (N, C, H, W), from the values, (N, C, P), or the values from the map."""
    batch, channels, height, width = map.shape
    points, cells = indices.shape[1], height * width
    if not indices.numel():
        return
    winner = winners(indices, cells)
    if not channels:
        return
    blocks = cdiv(points, BLOCK)
    move_kernel[batch * blocks, cdiv(channels, CHANNELS)](
        indices, winner, map, values, points, blocks, channels, cells, width, *indices.stride(), *map.stride(),
        *values.stride(), WRITE=write, BLOCK=BLOCK, CHANNELS=CHANNELS,
    )  # fmt: skip


def point_scatter(input: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """input (N, C, H, W) with values (N, C, P) in the cells indices (N, P)."""
    out = input.clone(memory_format=torch.contiguous_format)
    move(indices, out, values, True)
    return out


def point_scatter_backward(grad: Tensor, indices: Tensor) -> Tensor:
    """The gradient (N, C, P) of the values."""
    out = grad.new_empty(*grad.shape[:2], indices.shape[1])
    move(indices, grad, out, False)
    return out


_T = {"indices": "*i64", "winner": "*i32", "map": "*T", "values": "*T"}
AOT = [
    (winner_kernel, _T, [{"BLOCK": BLOCK}]),
    (move_kernel, _T, [{"WRITE": write, "BLOCK": BLOCK, "CHANNELS": CHANNELS} for write in (True, False)]),
]
