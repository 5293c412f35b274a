"""The confusion matrix on a GPU: a product of one-hot rows and columns, tile by tile.

Idea. A histogram by atomics waits where neighbouring pixels are of one class, and they mostly are. Here a program takes
some thousands of pixels, and for a tile of classes by classes multiplies what says which pixel is in which row by what
says which is in which column: sums of ones, on tensor cores, exact in float32 as long as they are that few. One atomic
for each place that is not 0 ends it; those are integers, so that their order decides nothing.

Memory. Labels are read in the dtype that they have, once for each tile, of which there is one up to 64 classes. The
argmax of logits, read once in whatever layout they have, is written as 32-bit labels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, tile_width
from torch import Tensor

PIXELS = {"BLOCK": 128, "STEPS": 32}  # of a program: at once, and how often
TILES = {16: {"TILE": 16}, 32: {"TILE": 32}, 64: {"TILE": 64, "num_warps": 8}}  # by their sides


@triton.jit
def argmax_kernel(logits, out, points, blocks, channels, stride_n, stride_c, stride_p, BLOCK: tl.constexpr):
    """The channel of the largest of each pixel: of equal ones the first, and the first NaN before all numbers."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < points
    logits += item * stride_n + p * stride_p
    best = tl.load(logits, mask=inside, other=0.0)
    label = tl.zeros([BLOCK], tl.int32)
    for c in tl.range(1, channels, loop_unroll_factor=4):
        logits += stride_c
        x = tl.load(logits, mask=inside, other=0.0)
        larger = ((x > best) | (x != x)) & (best == best)
        best = tl.where(larger, x, best)
        label = tl.where(larger, c, label)
    tl.store(out + item * points + p, label, mask=inside)


@triton.jit
def count_kernel(
    prediction, target, matrix, wrong, pixels, classes, ignore, tiles,
    IGNORE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Adds a program's pixels to a tile of the matrix; ``wrong`` is 1 where one of their labels is out of range."""
    part, tile = tl.program_id(0) // (tiles * tiles), tl.program_id(0) % (tiles * tiles)
    row = tile // tiles * TILE + tl.arange(0, TILE)
    column = tile % tiles * TILE + tl.arange(0, TILE)
    start = part.to(tl.int64) * (BLOCK * STEPS)
    counts = tl.zeros([TILE, TILE], tl.float32)
    bad = tl.zeros([BLOCK], tl.int32)
    for step in range(tl.minimum(STEPS, tl.cdiv(pixels - start, BLOCK))):
        pixel = start + step * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < pixels
        t = tl.load(target + pixel, mask=valid, other=0).to(tl.int64)
        p = tl.load(prediction + pixel, mask=valid, other=0).to(tl.int64)
        if IGNORE:
            valid = valid & (t != ignore)
        known = (t >= 0) & (t < classes) & (p >= 0) & (p < classes)
        bad |= (valid & (known == 0)).to(tl.int32)
        t = tl.where(valid & known, t, -1).to(tl.int32)
        is_row = (row[:, None] == t[None, :]).to(tl.float16)
        is_column = (p.to(tl.int32)[:, None] == column[None, :]).to(tl.float16)
        counts = tl.dot(is_row, is_column, counts)
    tl.store(wrong + part, tl.max(bad, axis=0), mask=tile == 0)
    number = counts.to(tl.int64)
    place = row[:, None] * classes + column[None, :]  # below 2^31
    inside = (number > 0) & (row < classes)[:, None] & (column < classes)[None, :]
    tl.atomic_add(matrix + place, number, mask=inside, sem="relaxed")


def argmax(logits: Tensor) -> Tensor:
    """logits (N, C, P) to int32 labels (N, P)."""
    batch, channels, points = logits.shape
    out = torch.empty((batch, points), dtype=torch.int32, device=logits.device)
    if out.numel():
        blocks = cdiv(points, 256)
        argmax_kernel[(batch * blocks,)](logits, out, points, blocks, channels, *logits.stride(), BLOCK=256)
    return out


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """prediction (N, P) or logits (N, C, P), target (N, P) to the counts (C, C)."""
    prediction = argmax(prediction) if prediction.is_floating_point() else prediction.contiguous()
    target = target.contiguous()
    matrix = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=target.device)
    if target.numel() == 0:
        return matrix
    parts = cdiv(target.numel(), PIXELS["BLOCK"] * PIXELS["STEPS"])
    side = min(64, tile_width(num_classes))
    tiles = cdiv(num_classes, side)
    wrong = torch.empty(parts, dtype=torch.int32, device=target.device)
    count_kernel[(parts * tiles * tiles,)](
        prediction, target, matrix, wrong, target.numel(), num_classes, ignore_index or 0, tiles,
        IGNORE=ignore_index is not None, **TILES[side], **PIXELS,
    )  # fmt: skip
    # On CUDA the assertion is the device's: the host can't wait.
    message = f"segops.ValueError: target or prediction: expected labels from 0 to {num_classes - 1}, got others"
    torch.ops.aten._assert_async.msg(wrong.amax() == 0, message)
    return matrix


_LABELS = {"matrix": "*i64", "wrong": "*i32", "pixels": "i64", "ignore": "i64"}
AOT = [
    (argmax_kernel, {"logits": "*T", "out": "*i32"}, [{"BLOCK": 256}]),
    *(
        (
            count_kernel,
            {"prediction": p, "target": t, **_LABELS},
            [{"IGNORE": True, **TILES[s], **PIXELS} for s in sides],
        )
        for p, t, sides in (("*i64", "*i64", (64, 16)), ("*u8", "*u8", (32,)), ("*i32", "*i64", (64,)))
    ),
]
