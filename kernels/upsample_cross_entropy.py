"""Cross entropy of up-sampled logits on a GPU, forward by pixels, backward by cells.

Forward, a program has a block of pixels of a row and goes through their classes, interpolated as they are needed, in
one sweep: the largest logit and the sum of exp, corrected whenever a larger logit comes.

Backward, a program has some cells of a row and some classes. The pixels that touch a cell lie in the four squares
around it: for each square it holds the four corners in registers and goes through the pixels, all cells side by side.
Every exp is computed four times, and no atomics are needed: the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.bilinear import axis, blend, first_positions, load_cells, pixels_of
from segops.kernels.integers import cdiv, next_power_of_2
from segops.kernels.lovasz import check_labels
from segops.kernels.lovasz_softmax import raised
from torch import Tensor

BLOCK = 128  # pixels of a program, forward


@triton.jit
def loss_kernel(
    input, target, weight, row_cell, row_fraction, column_cell, column_fraction, loss, lse, wrong,
    height, width, rows, columns, blocks, channels, stride_n, stride_c, stride_h, stride_w, ignore,
    IGNORE: tl.constexpr, SMOOTHING: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and log-sum-exp of each pixel; ``wrong`` of a block is 1 if one of its labels is."""
    item, pixel, inside, place, step_down, step_right, down, right = pixels_of(
        row_cell, row_fraction, column_cell, column_fraction, height, width, rows, columns, blocks, stride_h, stride_w,
        BLOCK,
    )  # fmt: skip
    label = tl.load(target + pixel, mask=inside, other=0)
    valid = inside
    if IGNORE:
        valid = inside & (label != ignore)
    known = valid & (label >= 0) & (label < channels)
    tl.store(wrong + tl.program_id(0), tl.max((valid & (known == 0)).to(tl.int32), axis=0))
    real = input.dtype.element_ty
    input += item * stride_n + place
    own = load_cells(input + label * stride_c, step_down, step_right, down, right, known)
    top, total, smooth = tl.full([BLOCK], -float("inf"), real), tl.zeros([BLOCK], real), tl.zeros([BLOCK], real)
    for c in tl.range(0, channels, loop_unroll_factor=4):
        x = load_cells(input, step_down, step_right, down, right, valid)
        before = top
        top, shift = raised(top, x)
        total = total * tl.exp(before - shift) + tl.exp(x - shift)
        if SMOOTHING > 0:
            smooth += tl.load(weight + c) * (tl.where(valid, x, 0.0) - tl.where(valid, own, 0.0))
        input += stride_c
    top = tl.where(top > -float("inf"), top, 0.0)
    cross_entropy = tl.log(total) - (own - top)
    result = (1 - SMOOTHING) * tl.load(weight + label, mask=known, other=0.0) * cross_entropy
    if SMOOTHING > 0:
        sum_of_weights = tl.load(weight + channels)
        result += SHARE * (sum_of_weights * cross_entropy - smooth)
    tl.store(loss + pixel, tl.where(valid, result, 0.0), mask=inside)
    tl.store(lse + pixel, tl.where(valid, top + tl.log(total), 0.0), mask=inside)


@triton.jit
def cells_kernel(
    grad, input, target, lse, weight, row_first, row_fraction, column_first, column_fraction, out,
    width, height, rows, columns, blocks, channels, stride_n, stride_c, stride_h, stride_w, ignore,
    IGNORE: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTHING: tl.constexpr, SHARE: tl.constexpr,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of cells of a row, out (N, C, rows, columns).

    By the logit of class c a pixel's is (own + share * sum of weights) * p_c - share * weight_c, less ``own`` for its
    label; ``own`` is grad * (1 - SMOOTHING) * weight of the label, ``share`` grad * SHARE.
    """
    program = tl.program_id(0).to(tl.int64)
    item, i = program // blocks // rows, program // blocks % rows
    j = (program % blocks) * CELLS + tl.arange(0, CELLS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = (c < channels)[:, None] & (j < columns)[None, :]
    real = input.dtype.element_ty
    total, shares = tl.zeros([CHANNELS, CELLS], real), tl.zeros([CELLS], real)
    sum_of_weights = tl.load(weight + channels)
    input += item * stride_n + c[:, None].to(tl.int64) * stride_c
    for below in tl.static_range(2):  # the squares above the cells, then those below
        upper = i - 1 + below
        first_row = tl.load(row_first + upper, mask=upper >= 0, other=0)
        last_row = tl.load(row_first + upper + 1, mask=upper >= 0, other=0)
        high, low = tl.maximum(upper, 0) * stride_h, tl.minimum(upper + 1, rows - 1) * stride_h
        for after in tl.static_range(2):  # left of them, then right
            j0 = j - 1 + after
            known = (j0 >= 0) & (j0 < columns)
            begin = tl.load(column_first + j0, mask=known, other=0)
            end = tl.load(column_first + j0 + 1, mask=known, other=0)
            near = tl.maximum(j0, 0)[None, :] * stride_w
            far = tl.minimum(j0 + 1, columns - 1)[None, :] * stride_w
            top_left = tl.load(input + high + near, mask=here, other=0.0)
            top_right = tl.load(input + high + far, mask=here, other=0.0)
            bottom_left = tl.load(input + low + near, mask=here, other=0.0)
            bottom_right = tl.load(input + low + far, mask=here, other=0.0)
            longest = tl.max(end - begin, axis=0)
            for y in range(first_row, last_row):
                down = tl.load(row_fraction + y)
                left, right = blend(top_left, bottom_left, down), blend(top_right, bottom_right, down)
                vertical = blend(down, 1 - down, below)
                for k in range(0, longest):
                    x = begin + k
                    pixel = (item * height + y) * width + x
                    on = x < end
                    across = tl.load(column_fraction + x, mask=on, other=0.0)
                    label = tl.load(target + pixel, mask=on, other=0)
                    if IGNORE:
                        on = on & (label != ignore)
                    own = tl.load(grad + pixel, mask=on, other=0.0)
                    share = own * SHARE
                    own *= 1 - SMOOTHING
                    if WEIGHTED:
                        own *= tl.load(weight + label, mask=on, other=0.0)
                    slope = own
                    if SMOOTHING > 0:
                        slope += share * sum_of_weights
                    reaches = vertical * blend(across, 1 - across, after)
                    logit = blend(left, right, across[None, :])
                    e = tl.exp(logit - tl.load(lse + pixel, mask=on, other=0.0)[None, :])
                    g = tl.where((slope != 0)[None, :], slope[None, :] * e, 0.0)
                    g -= tl.where(c[:, None] == label[None, :], own[None, :], 0.0)
                    total += reaches[None, :] * g
                    if SMOOTHING > 0:
                        shares += reaches * share
    if SMOOTHING > 0:
        total -= tl.load(weight + c, mask=c < channels, other=0.0)[:, None] * shares[None, :]
    place = ((item * channels + c[:, None]) * rows + i) * columns + j[None, :]
    tl.store(out + place, total, mask=here)


def weights(class_weight: Tensor | None, like: Tensor) -> Tensor:
    """(C + 1,): of the classes, and their sum."""
    weight = like.new_ones(like.shape[1]) if class_weight is None else class_weight
    return torch.cat([weight, weight.sum(0, keepdim=True)])


def upsample_cross_entropy(
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    align_corners: bool,
    ignore_index: int | None,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """input (N, C, h, w), target (N, H, W) to the loss and the log-sum-exp of each pixel, (N, H, W)."""
    (n, channels, rows, columns), (height, width) = input.shape, target.shape[1:]
    loss, lse = input.new_empty(target.shape), input.new_empty(target.shape)
    if not loss.numel():
        return loss, lse
    blocks = cdiv(width, BLOCK)
    wrong = torch.empty(n * height * blocks, dtype=torch.int32, device=input.device)
    tables = *axis(rows, height, align_corners, input), *axis(columns, width, align_corners, input)
    loss_kernel[wrong.shape](
        input, target.contiguous(), weights(class_weight, input), *tables, loss, lse, wrong, height, width, rows,
        columns, blocks, channels, *input.stride(), ignore_index or 0,
        IGNORE=ignore_index is not None, SMOOTHING=smoothing, SHARE=smoothing / channels, BLOCK=BLOCK,
    )  # fmt: skip
    check_labels(wrong, channels, ignore_index)
    return loss, lse


def tile(dtype: torch.dtype, channels: int) -> dict[str, int]:
    """Cells and channels of a program, backward."""
    most = 4 if dtype == torch.float64 else 16
    return {"CHANNELS": min(most, next_power_of_2(channels)), "CELLS": 32, "num_warps": 4}


def upsample_cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    class_weight: Tensor | None,
    align_corners: bool,
    ignore_index: int | None,
    smoothing: float,
) -> Tensor:
    """Gradient of input, (N, C, h, w); grad and lse (N, H, W)."""
    (n, channels, rows, columns), (height, width) = input.shape, target.shape[1:]
    out = input.new_empty(input.shape)
    if not out.numel():
        return out
    row, column = axis(rows, height, align_corners, input), axis(columns, width, align_corners, input)
    firsts = first_positions(row.cell, rows), first_positions(column.cell, columns)
    sizes = tile(input.dtype, channels)
    blocks = cdiv(columns, sizes["CELLS"])
    cells_kernel[(n * rows * blocks, cdiv(channels, sizes["CHANNELS"]))](
        grad.contiguous(), input, target.contiguous(), lse.contiguous(), weights(class_weight, input), firsts[0],
        row.fraction, firsts[1], column.fraction, out, width, height, rows, columns, blocks, channels,
        *input.stride(), ignore_index or 0, IGNORE=ignore_index is not None, WEIGHTED=class_weight is not None,
        SMOOTHING=smoothing, SHARE=smoothing / channels, **sizes,
    )  # fmt: skip
    return out


_TABLES = {
    **dict.fromkeys(("row_cell", "column_cell", "row_first", "column_first", "wrong"), "*i32"),
    **dict.fromkeys(("row_fraction", "column_fraction", "input", "weight", "loss", "lse", "grad", "out"), "*T"),
    "target": "*i64",
    "ignore": "i64",
}
AOT = [
    (loss_kernel, _TABLES, [{"IGNORE": True, "SMOOTHING": s, "SHARE": s / 150, "BLOCK": BLOCK} for s in (0.0, 0.1)]),
    *(
        (
            cells_kernel,
            {name: kind.replace("T", number) for name, kind in _TABLES.items()},
            [
                {"IGNORE": True, "WEIGHTED": s > 0, "SMOOTHING": s, "SHARE": s / 150, **tile(dtype, 150)}
                for s in (0.0, 0.1)
            ],
        )
        for number, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
    ),
]
