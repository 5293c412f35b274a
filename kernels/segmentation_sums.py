"""The sums of segmentation losses on a GPU: two sweeps over a block of pixels that stays in the cache in between.

Idea. A program has a block of pixels. It goes over their channels in chunks, first for the denominator of the softmax,
then for what each class has of the sums, or of the gradient. The second sweep finds the logits in the cache, so memory
is read once. Sums are written for each block, and added in float64 by torch: no atomics, the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
from segops.kernels.lovasz import check_labels
from segops.kernels.lovasz_softmax import raised
from torch import Tensor

OVERLAP, PREDICTED, PIXELS, CROSS_ENTROPY, FOCAL, UNIFORM, SUMS = (tl.constexpr(i) for i in range(7))


@triton.jit
def labels_of(target, points, ignore, IGNORE: tl.constexpr, item, p, target_n, target_p):
    """The labels of pixels, and which of them count."""
    valid = p < points
    label = tl.load(target + item * target_n + p * target_p, mask=valid, other=0)
    if IGNORE:
        valid = valid & (label != ignore)
    return label, valid


@triton.jit
def softmax_sweep(
    input, weight, label, valid, channels, stride_c,
    WEIGHTED: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest logit, sum of exp over it, own logit, and sum of exp times the classes' ``weight``, of each pixel."""
    real = input.dtype.element_ty
    top, total = tl.full([BLOCK], -float("inf"), real), tl.zeros([BLOCK], real)
    own, product = tl.zeros([BLOCK], real), tl.zeros([BLOCK], real)
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        inside = (c < channels)[:, None] & valid[None, :]
        x = tl.load(input[None, :] + c[:, None].to(tl.int64) * stride_c, mask=inside, other=-float("inf"))
        before = top
        top, shift = raised(top, tl.max(x, axis=0))
        scale, e = tl.exp(before - shift), tl.exp(x - shift[None, :])
        total = total * scale + tl.sum(e, axis=0)
        own += tl.sum(tl.where(c[:, None] == label[None, :], x, 0.0), axis=0)
        if WEIGHTED:
            w = tl.load(weight + c, mask=c < channels, other=0.0)
            product = product * scale + tl.sum(e * w[:, None], axis=0)
    return tl.where(top > -float("inf"), top, 0.0), total, own, product


@triton.jit
def power(u, GAMMA: tl.constexpr):
    """u^gamma for 0 <= u <= 1."""
    if GAMMA == 0:
        result = tl.full(u.shape, 1.0, u.dtype)
    elif GAMMA == 1:
        result = u
    elif GAMMA == 2:
        result = u * u
    else:
        result = tl.where(u > 0, tl.exp(GAMMA * tl.log(u)), 0.0)
    return result


@triton.jit
def sums_kernel(
    input, target, out, wrong, points, blocks, channels, ignore, stride_n, stride_c, stride_p, target_n, target_p,
    GAMMA: tl.constexpr, IGNORE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (blocks of all images, SUMS, channels); ``wrong`` of a block is 1 if one of its labels is."""
    program = tl.program_id(0).to(tl.int64)
    item = program // blocks
    p = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    label, valid = labels_of(target, points, ignore, IGNORE, item, p, target_n, target_p)
    tl.store(wrong + program, tl.max((valid & ((label < 0) | (label >= channels))).to(tl.int32), axis=0))
    input += item * stride_n + p * stride_p
    top, total, own, _ = softmax_sweep(input, input, label, valid, channels, stride_c, False, CHANNELS, BLOCK)
    inverse, log_total = tl.where(valid, 1 / total, 0.0), tl.log(total)
    e = tl.exp(own - top)
    cross_entropy = log_total - (own - top)
    focal = power((total - e) / total, GAMMA) * cross_entropy
    out += program * SUMS * channels
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        here = c < channels
        inside = here[:, None] & valid[None, :]
        x = tl.load(input[None, :] + c[:, None].to(tl.int64) * stride_c, mask=inside, other=0.0)
        shifted = x - top[None, :]
        probability = tl.where(inside, tl.exp(shifted) * inverse[None, :], 0.0)
        mine = inside & (c[:, None] == label[None, :])
        tl.store(out + OVERLAP * channels + c, tl.sum(tl.where(mine, probability, 0.0), axis=1), mask=here)
        tl.store(out + PREDICTED * channels + c, tl.sum(probability, axis=1), mask=here)
        tl.store(out + PIXELS * channels + c, tl.sum(mine.to(x.dtype), axis=1), mask=here)
        entropies = tl.sum(tl.where(mine, cross_entropy[None, :], 0.0), axis=1)
        tl.store(out + CROSS_ENTROPY * channels + c, entropies, mask=here)
        tl.store(out + FOCAL * channels + c, tl.sum(tl.where(mine, focal[None, :], 0.0), axis=1), mask=here)
        uniform = tl.sum(tl.where(inside, log_total[None, :] - shifted, 0.0), axis=1)
        tl.store(out + UNIFORM * channels + c, uniform, mask=here)


@triton.jit
def sums_backward_kernel(
    grad, input, target, out, points, blocks, channels, ignore, stride_n, stride_c, stride_p, target_n, target_p,
    GAMMA: tl.constexpr, IGNORE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad (N, SUMS, C) to out (N, C, P): with g_c the gradient by log p_c, g_c - p_c * (sum of all g)."""
    program = tl.program_id(0).to(tl.int64)
    item = program // blocks
    p = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    label, valid = labels_of(target, points, ignore, IGNORE, item, p, target_n, target_p)
    input += item * stride_n + p * stride_p
    grad += item * SUMS * channels
    predicted, uniform = grad + PREDICTED * channels, grad + UNIFORM * channels
    top, total, own, product = softmax_sweep(
        input, predicted, label, valid, channels, stride_c, True, CHANNELS, BLOCK
    )  # fmt: skip
    known = valid & (label >= 0) & (label < channels)
    e = tl.exp(own - top)
    probability, others, log_p = e / total, (total - e) / total, own - top - tl.log(total)
    slope = power(others, GAMMA)
    inner = GAMMA * slope / others * probability * log_p
    slope = tl.where((others > 0) & (probability > 0), inner, 0.0) - slope  # where one is 0, the limit
    of_own = probability * tl.load(grad + OVERLAP * channels + label, mask=known, other=0.0)
    of_own -= tl.load(grad + CROSS_ENTROPY * channels + label, mask=known, other=0.0)
    of_own += slope * tl.load(grad + FOCAL * channels + label, mask=known, other=0.0)
    everything = product / total + of_own
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        everything -= tl.sum(tl.load(uniform + c, mask=c < channels, other=0.0), axis=0)
    out += item * channels * points + p
    for start in range(0, channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        here = c < channels
        inside = here[:, None] & valid[None, :]
        x = tl.load(input[None, :] + c[:, None].to(tl.int64) * stride_c, mask=inside, other=0.0)
        q = tl.exp(x - top[None, :]) / total[None, :]
        by_class = tl.load(predicted + c, mask=here, other=0.0)[:, None]
        g = q * (by_class - everything[None, :]) - tl.load(uniform + c, mask=here, other=0.0)[:, None]
        g += tl.where(c[:, None] == label[None, :], of_own[None, :], 0.0)
        place = out[None, :] + c[:, None].to(tl.int64) * points
        tl.store(place, tl.where(inside, g, 0.0), mask=here[:, None] & (p < points)[None, :])


def tile(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Pixels and channels of a program at a time."""
    most = 8 if dtype == torch.float64 else 16
    return {"CHANNELS": min(most, next_power_of_2(channels)), "BLOCK": 128, "num_warps": 4}


def launch(input: Tensor, target: Tensor, ignore_index: int | None, gamma: float) -> tuple[int, tuple, dict]:
    """Blocks of an image, and what both kernels take after their tensors."""
    _, channels, points = input.shape
    sizes = tile(channels, input.dtype)
    blocks = cdiv(points, sizes["BLOCK"])
    numbers = points, blocks, channels, ignore_index or 0, *input.stride(), *target.stride()
    return blocks, numbers, {"GAMMA": gamma, "IGNORE": ignore_index is not None, **sizes}


def segmentation_sums(input: Tensor, target: Tensor, ignore_index: int | None, gamma: float) -> Tensor:
    """input (N, C, P), target (N, P) to (N, 6, C)."""
    n, channels, points = input.shape
    if n * points == 0:
        return input.new_zeros(n, SUMS.value, channels)
    blocks, numbers, options = launch(input, target, ignore_index, gamma)
    partial = input.new_empty(n, blocks, SUMS.value, channels)
    wrong = torch.empty(n * blocks, dtype=torch.int32, device=input.device)
    sums_kernel[wrong.shape](input, target, partial, wrong, *numbers, **options)
    check_labels(wrong, channels, ignore_index)
    return partial.sum(1, dtype=torch.float64).to(input.dtype)


def segmentation_sums_backward(
    grad: Tensor, input: Tensor, target: Tensor, ignore_index: int | None, gamma: float
) -> Tensor:
    """Gradient of input, (N, C, P); grad (N, 6, C)."""
    out = input.new_empty(input.shape)
    if out.numel():
        blocks, numbers, options = launch(input, target, ignore_index, gamma)
        grid = (input.shape[0] * blocks,)
        sums_backward_kernel[grid](grad.contiguous(), input, target, out, *numbers, **options)
    return out


_LAUNCHES = [
    {"GAMMA": gamma, "IGNORE": True, **tile(channels, torch.float32)} for gamma, channels in ((2.0, 21), (1.5, 2))
]
_LAUNCHES_DOUBLE = [{"GAMMA": 2.0, "IGNORE": True, **tile(21, torch.float64)}]
AOT = [
    (
        kernel,
        {**dict.fromkeys(("grad", "input", "out"), number), "target": "*i64", "wrong": "*i32", "ignore": "i64"},
        launches,
    )
    for kernel in (sums_kernel, sums_backward_kernel)
    for number, launches in (("*fp32", _LAUNCHES), ("*fp64", _LAUNCHES_DOUBLE))
]
