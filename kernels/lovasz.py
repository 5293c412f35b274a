"""What the Lovasz losses on a GPU share: errors as sorted keys, and the steps of the Jaccard loss along sorted rows.

Idea. All classes and images are the rows of one matrix (R, L). An error and whether its pixel is foreground are packed
into one integer, so that a single sort of integers orders the errors and carries the labels along. The steps need no
more than how many foreground elements come before each element: a kernel counts those of each block of a row, a
cumulative sum goes over the blocks (a thousandth of the elements), and the kernel that needs the steps counts on within
its block. Nothing depends on the data's values but the order, so that the host never waits, and CUDA graphs work.

Memory. A key has the size of the input's numbers; the sort returns keys and 64-bit positions. The gradient by the
errors is scattered to each pixel's own place, without atomics: the same bits every run.

Cost. The sort, then two passes over the sorted keys; a row is shorter than 2^31, as torch.sort has it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor

BLOCK = 1024  # elements of a row that a program scans


@triton.jit
def encode(error, foreground, valid):
    """Keys in the order of errors > 0, all others 0 and NaN above infinity; an ignored element's is less than all.

    The float's bits, which are in its order, grow by 1 and leave 0 to the ignored; foreground is the last bit.
    """
    positive = tl.abs(tl.where(error <= 0, 0.0, error))
    if error.dtype == tl.float32:
        bits = tl.minimum(positive.to(tl.int32, bitcast=True), 0x7FC00000) - ((1 << 30) - 1)
        key = tl.where(valid, bits * 2 + foreground.to(tl.int32), -(1 << 31))
    else:
        bits = tl.minimum(positive.to(tl.int64, bitcast=True), 0x7FF8 << 48) - ((1 << 62) - 1)
        key = tl.where(valid, bits * 2 + foreground.to(tl.int64), -(1 << 63))
    return key


@triton.jit
def decode(key):
    """The error (of an ignored element 0), and whether the element is not ignored."""
    if key.dtype == tl.int32:
        bits = (key >> 1) + ((1 << 30) - 1)
        error = tl.maximum(bits, 0).to(tl.float32, bitcast=True)
    else:
        bits = (key >> 1) + ((1 << 62) - 1)
        error = tl.maximum(bits, 0).to(tl.float64, bitcast=True)
    return error, bits >= 0


@triton.jit
def jaccard_steps(foreground, ends, row, block, blocks, position, like):
    """Steps (see the reference) of a block's elements, where ``foreground`` is 1 or 0, in the dtype of ``like``.

    ``ends`` (R, blocks) says how much foreground there is up to each block's end.
    """
    ends += row * blocks
    total = tl.load(ends + blocks - 1)
    before = tl.load(ends + block - 1, mask=block > 0, other=0) + tl.cumsum(foreground, axis=0) - foreground
    union = tl.maximum(total + position - before, 1)  # counts are exact: only their quotient is rounded
    wide = union.to(like)
    step = tl.where(foreground != 0, 1.0, (total - before).to(like) / (union + 1).to(like)) / wide
    return tl.where(total > 0, step, (position == 0).to(like))


@triton.jit
def count_kernel(key, counts, length, blocks, BLOCK: tl.constexpr):
    """Foreground in each block of sorted rows."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    foreground = tl.load(key + row * length + position, mask=position < length, other=0) & 1
    tl.store(counts + tl.program_id(0), tl.sum(foreground.to(tl.int32), axis=0))


@triton.jit
def loss_kernel(key, ends, loss, length, blocks, BLOCK: tl.constexpr):
    """Each block's part of its row's loss."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    position = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.load(key + row * length + position, mask=position < length, other=0)
    error, valid = decode(k)
    step = jaccard_steps((k & 1).to(tl.int32), ends, row, block, blocks, position, loss.dtype.element_ty)
    tl.store(loss + tl.program_id(0), tl.sum(tl.where(position < length, error * step, 0.0), axis=0))


@triton.jit
def slope_kernel(key, order, ends, factor, slopes, length, blocks, BLOCK: tl.constexpr):
    """The derivative by the score behind each error, which is minus that by the error for foreground; times the row's
    factor, at the place that the element had before the sort."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    position = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = position < length
    k = tl.load(key + row * length + position, mask=inside, other=0)
    error, valid = decode(k)
    foreground = (k & 1).to(tl.int32)
    step = jaccard_steps(foreground, ends, row, block, blocks, position, slopes.dtype.element_ty)
    slope = tl.where(error > 0, tl.where(foreground != 0, -step, step), 0.0) * tl.load(factor + row)
    place = tl.load(order + row * length + position, mask=inside, other=0)
    tl.store(slopes + row * length + place, tl.where(valid, slope, 0.0), mask=inside)


def new_keys(rows: int, length: int, like: Tensor) -> Tensor:
    """Uninitialised keys for errors of the dtype of ``like``."""
    return like.new_empty((rows, length), dtype=torch.int32 if like.dtype == torch.float32 else torch.int64)


def sort_keys(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys (R, L), L > 0, in falling order, where each was before, and how much foreground there is up to each block's
    end, (R, blocks)."""
    keys, order = keys.sort(dim=1, descending=True)
    rows, length = keys.shape
    blocks = cdiv(length, BLOCK)
    counts = keys.new_empty((rows, blocks), dtype=torch.int32)
    count_kernel[(rows * blocks,)](keys, counts, length, blocks, BLOCK=BLOCK)
    return keys, order, counts.cumsum(1)


def losses(keys: Tensor, ends: Tensor, like: Tensor) -> Tensor:
    """The loss of each row, (R,) in float64; that of a row with a NaN is NaN."""
    rows, blocks = ends.shape
    parts = like.new_empty((rows, blocks))
    loss_kernel[(rows * blocks,)](keys, ends, parts, keys.shape[1], blocks, BLOCK=BLOCK)
    return parts.sum(1, dtype=torch.float64)


def write_slopes(slopes: Tensor, keys: Tensor, order: Tensor, ends: Tensor, factor: Tensor) -> None:
    """To ``slopes``, R L contiguous numbers: each row's gradient by its scores, times ``factor`` (R,)."""
    rows, blocks = ends.shape
    slope_kernel[(rows * blocks,)](keys, order, ends, factor.contiguous(), slopes, keys.shape[1], blocks, BLOCK=BLOCK)


def has_nan(keys: Tensor) -> Tensor:
    """(R,) bool, of sorted keys: NaN is first."""
    infinity = 0x7F800000 - (1 << 30) if keys.dtype == torch.int32 else (0x7FF0 << 48) - (1 << 62)
    return keys[:, 0] > 2 * (infinity + 1) + 1


def check_labels(wrong: Tensor, labels: int, ignore_index: int | None) -> None:
    """``wrong`` of a block is 1 if one of its labels is. On CUDA the assertion is the device's: the host can't wait."""
    spare = "" if ignore_index is None else f" or ignore_index = {ignore_index}"
    message = f"segops.ValueError: target: expected labels from 0 to {labels - 1}{spare}, got others"
    torch.ops.aten._assert_async.msg(wrong.amax() == 0, message)


_SORTED = {"ends": "*i64", "order": "*i64"}
AOT = [
    entry
    for number, key in (("*fp32", "*i32"), ("*fp64", "*i64"))
    for entry in (
        (count_kernel, {"key": key, "counts": "*i32"}, [{"BLOCK": BLOCK}]),
        (loss_kernel, {"key": key, "loss": number, **_SORTED}, [{"BLOCK": BLOCK}]),
        (slope_kernel, {"key": key, "factor": number, "slopes": number, **_SORTED}, [{"BLOCK": BLOCK}]),
    )
]
