"""The gradient of the Lovasz extension of the Jaccard loss, by sorted errors, on a GPU.

A kernel counts the foreground of each block of a row, a cumulative sum goes over the blocks, and a second kernel counts
on within its block (lovasz.py): the input is read twice, the result written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.lovasz import BLOCK, jaccard_steps
from torch import Tensor


@triton.jit
def ones_kernel(x, counts, wrong, length, blocks, stride_r, stride_p, BLOCK: tl.constexpr):
    """Ones in each block of the rows; ``wrong`` of a block is 1 if there is anything but zeros and ones."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * stride_r + position * stride_p, mask=position < length, other=0.0)
    tl.store(counts + tl.program_id(0), tl.sum((value != 0).to(tl.int32), axis=0))
    tl.store(wrong + tl.program_id(0), tl.max(((value != 0) & (value != 1)).to(tl.int32), axis=0))


@triton.jit
def steps_kernel(x, ends, out, length, blocks, stride_r, stride_p, BLOCK: tl.constexpr):
    """The steps, to out (R, P)."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    position = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = position < length
    foreground = tl.load(x + row * stride_r + position * stride_p, mask=inside, other=0.0) != 0
    step = jaccard_steps(foreground.to(tl.int32), ends, row, block, blocks, position, out.dtype.element_ty)
    tl.store(out + row * length + position, step, mask=inside)


def lovasz_grad(sorted_foreground: Tensor) -> Tensor:
    """sorted_foreground (R, P) of zeros and ones to (R, P)."""
    rows, length = sorted_foreground.shape
    out = sorted_foreground.new_empty((rows, length))
    if out.numel() == 0:
        return out
    blocks = cdiv(length, BLOCK)
    counts, wrong = sorted_foreground.new_empty((2, rows, blocks), dtype=torch.int32)
    grid, sizes = (rows * blocks,), (length, blocks, *sorted_foreground.stride())
    ones_kernel[grid](sorted_foreground, counts, wrong, *sizes, BLOCK=BLOCK)
    message = "segops.ValueError: sorted_foreground: expected zeros and ones, got other values"
    torch.ops.aten._assert_async.msg(wrong.amax() == 0, message)
    steps_kernel[grid](sorted_foreground, counts.cumsum(1), out, *sizes, BLOCK=BLOCK)
    return out


AOT = [
    (ones_kernel, {"x": "*T", "counts": "*i32", "wrong": "*i32"}, [{"BLOCK": BLOCK}]),
    (steps_kernel, {"x": "*T", "ends": "*i64", "out": "*T"}, [{"BLOCK": BLOCK}]),
]
