"""The Lovasz hinge loss on a GPU: a kernel makes keys of the errors, lovasz.py does the rest.

A set is a row, so the gradient by the sorted errors goes straight to its pixels. Nothing is kept between the forward
and the backward pass: both sort.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.lovasz import check_labels, encode, has_nan, losses, new_keys, sort_keys, write_slopes
from torch import Tensor


@triton.jit
def hinge_keys_kernel(
    logits, target, key, wrong, points, blocks, ignore, stride_n, stride_p, target_n, target_p,
    IGNORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys (N, P) of the hinge errors; ``wrong`` of a block is 1 if one of its labels is."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < points
    z = tl.load(logits + item * stride_n + p * stride_p, mask=inside, other=0.0)
    label = tl.load(target + item * target_n + p * target_p, mask=inside, other=0)
    valid = inside
    if IGNORE:
        valid = inside & (label != ignore)
    tl.store(wrong + tl.program_id(0), tl.max((valid & ((label < 0) | (label > 1))).to(tl.int32), axis=0))
    foreground = label == 1
    tl.store(key + item * points + p, encode(1 - tl.where(foreground, z, -z), foreground, valid), mask=inside)


def sort_errors(logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None) -> tuple:
    """Sorted keys of logits and target (N, P), a row for each set, with what `sort_keys` says of them."""
    batch, points = logits.shape
    keys, tile = new_keys(batch, points, logits), 512
    blocks = cdiv(points, tile)
    wrong = torch.empty(batch * blocks, dtype=torch.int32, device=logits.device)
    hinge_keys_kernel[(batch * blocks,)](
        logits, target, keys, wrong, points, blocks, ignore_index or 0, *logits.stride(), *target.stride(),
        IGNORE=ignore_index is not None, BLOCK=tile,
    )  # fmt: skip
    check_labels(wrong, 2, ignore_index)
    return sort_keys(keys if per_image else keys.view(1, -1))


def lovasz_hinge(logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None) -> Tensor:
    """logits, target (N, P) to the loss of each set: (N,) per image, else (1,)."""
    if logits.numel() == 0:
        return logits.new_zeros(logits.shape[0] if per_image else 1)
    keys, _, ends = sort_errors(logits, target, per_image, ignore_index)
    return losses(keys, ends, logits).to(logits.dtype)


def lovasz_hinge_backward(
    grad: Tensor, logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None
) -> Tensor:
    """Gradient of logits, (N, P); grad (S,)."""
    out = logits.new_empty(logits.shape)
    if out.numel() == 0:
        return out
    keys, order, ends = sort_errors(logits, target, per_image, ignore_index)
    write_slopes(out, keys, order, ends, grad.masked_fill(has_nan(keys), float("nan")))
    return out


AOT = [
    (
        hinge_keys_kernel,
        {"logits": number, "target": "*i64", "key": key, "wrong": "*i32", "ignore": "i64"},
        [{"IGNORE": True, "BLOCK": 512}, {"IGNORE": False, "BLOCK": 512}],
    )
    for number, key in (("*fp32", "*i32"), ("*fp64", "*i64"))
]
