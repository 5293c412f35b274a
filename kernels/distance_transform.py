"""The exact Euclidean distance transform on a GPU: scans along the columns, then the least over each row.

Idea. Two kernels, one for each direction, carry the row of the last change of labels down (up) a strip of columns, tile
after tile, by a scan within each. Then a program takes a block of pixels of a row and goes over the columns that can be
nearer than what their own column has: for each, the squared distance within it plus that along the row, in integers.
Only the square root is floating-point, in float64, so that it is rounded once.

Cost. Each scan reads the labels twice and writes steps, 4 bytes a pixel. The search reads as far as the largest step
of its block reaches: O(W) for each pixel at worst, far less near the boundaries that images are full of.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor

SCAN = {"ROWS": 16, "COLUMNS": 32}
SEARCH = {"BLOCK": 64, "STEP": 64}
FAR = tl.constexpr(1 << 29)  # steps from here on are none


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def scan_kernel(labels, steps, height, width, strips, UP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows to the nearest pixel of another label above, and upwards the least of that and the same below."""
    item = (tl.program_id(0) // strips).to(tl.int64)
    x = tl.program_id(0) % strips * COLUMNS + tl.arange(0, COLUMNS)
    labels += item * height * width
    steps += item * height * width
    none = 2 * FAR if UP else -FAR  # FAR steps or more from every row
    nearest = tl.full([COLUMNS], none, tl.int32)
    tiles = tl.cdiv(height, ROWS)
    for i in range(tiles):
        y = (tiles - 1 - i if UP else i) * ROWS + tl.arange(0, ROWS)
        before = y + 1 if UP else y - 1
        inside = (y < height)[:, None] & (x < width)[None, :]
        beside = inside & ((before >= 0) & (before < height))[:, None]
        place = y.to(tl.int64)[:, None] * width + x[None, :]
        label = tl.load(labels + place, mask=inside, other=0)
        other = tl.load(labels + (place + width if UP else place - width), mask=beside, other=0)
        change = tl.where(beside & (label != other), before[:, None], none)
        if UP:
            change = tl.minimum(tl.associative_scan(change, 0, smaller, reverse=True), nearest[None, :])
            nearest = tl.min(change, axis=0)
            found = tl.minimum(change - y[:, None], tl.load(steps + place, mask=inside, other=0))
        else:
            change = tl.maximum(tl.associative_scan(change, 0, larger), nearest[None, :])
            nearest = tl.max(change, axis=0)
            found = tl.where(label == 0, 0, y[:, None] - change)
        tl.store(steps + place, found, mask=inside)


@triton.jit
def search_kernel(labels, steps, out, width, blocks, WIDE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Distances of a block of a row; squares are 64-bit integers where WIDE."""
    integer = tl.int64 if WIDE else tl.int32
    none = 1 << 60 if WIDE else 1 << 30
    row = (tl.program_id(0) // blocks).to(tl.int64) * width
    start = tl.program_id(0) % blocks * BLOCK
    x = start + tl.arange(0, BLOCK)
    inside = x < width
    label = tl.load(labels + row + x, mask=inside, other=0)
    own = tl.load(steps + row + x, mask=inside, other=0)
    reach = tl.minimum(tl.max(own, axis=0), width)
    least = tl.where(own < FAR, own.to(integer) * own, none)
    for first in range(tl.maximum(start - reach, 0), tl.minimum(start + BLOCK + reach, width), STEP):
        i = first + tl.arange(0, STEP)
        other = tl.load(labels + row + i, mask=i < width, other=0)
        down = tl.load(steps + row + i, mask=i < width, other=0)
        square = tl.where(down < FAR, down.to(integer) * down, none)
        apart = (x[:, None] - i[None, :]).to(integer)
        there = apart * apart + tl.where(other[None, :] == label[:, None], square[None, :], 0)
        least = tl.minimum(least, tl.min(tl.where((i < width)[None, :], there, none), axis=1))
    least = tl.where(label == 0, 0, least)
    distance = tl.where(least < none, tl.sqrt(least.to(tl.float64)), float("inf"))
    tl.store(out + row + x, distance.to(tl.float32), mask=inside)


def distance_transform(labels: Tensor) -> Tensor:
    """labels (N, H, W) to distances, float32."""
    labels = labels.contiguous()
    batch, height, width = labels.shape
    out = torch.empty(labels.shape, dtype=torch.float32, device=labels.device)
    if out.numel() == 0:
        return out
    steps = torch.empty(labels.shape, dtype=torch.int32, device=labels.device)
    strips, blocks = cdiv(width, SCAN["COLUMNS"]), cdiv(width, SEARCH["BLOCK"])
    for up in (False, True):
        scan_kernel[(batch * strips,)](labels, steps, height, width, strips, UP=up, **SCAN)
    wide = height**2 + width**2 >= 1 << 30
    search_kernel[(batch * height * blocks,)](labels, steps, out, width, blocks, WIDE=wide, **SEARCH)
    return out


AOT = [
    entry
    for label in ("*u8", "*i64")
    for entry in (
        (scan_kernel, {"labels": label, "steps": "*i32"}, [{"UP": up, **SCAN} for up in (False, True)]),
        (
            search_kernel,
            {"labels": label, "steps": "*i32", "out": "*fp32"},
            [{"WIDE": wide, **SEARCH} for wide in (False, True)],
        ),
    )
]
