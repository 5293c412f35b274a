"""The Lovasz-softmax loss on a GPU: softmax and keys in one kernel, one sort for all classes and images, lovasz.py.

Idea. A program makes the softmax of a block of pixels in a single pass over their channels, whatever their number, and
in a second pass the key of each class. Backward, the gradient by the probabilities takes the memory of the unsorted
keys, and one kernel takes it through the softmax. Nothing is kept between the forward and the backward pass: both sort.

Cost. The logits are read twice (the second time mostly from the cache), a key written for each class and pixel, then
the sort and the scan of lovasz.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.lovasz import check_labels, encode, has_nan, losses, new_keys, sort_keys, write_slopes
from torch import Tensor

TILE = 256  # pixels of a program


@triton.jit
def raised(top, x):
    """The running maximum of a softmax, and what to subtract from the exponents: not -inf where nothing else came."""
    top = tl.maximum(top, x)
    return top, tl.where(top > -float("inf"), top, 0.0)


@triton.jit
def keys_kernel(
    input, target, slots, key, wrong, points, blocks, channels, labels, ignore, stride_n, stride_c, stride_p,
    target_n, target_p, row_n, row_k, ACTIVATION: tl.constexpr, IGNORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys of the errors of each class that has a slot; ``wrong`` of a block is 1 if one of its labels is."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < points
    label = tl.load(target + item * target_n + p * target_p, mask=inside, other=0)
    valid = inside
    if IGNORE:
        valid = inside & (label != ignore)
    tl.store(wrong + tl.program_id(0), tl.max((valid & ((label < 0) | (label >= labels))).to(tl.int32), axis=0))
    real = input.dtype.element_ty
    top, total = tl.full([BLOCK], -float("inf"), real), tl.zeros([BLOCK], real)
    input += item * stride_n + p * stride_p
    place = input
    if ACTIVATION == "softmax":
        for _ in tl.range(0, channels, loop_unroll_factor=4):
            x = tl.load(place, mask=inside, other=0.0)
            before = top
            top, shift = raised(top, x)
            total = total * tl.exp(before - shift) + tl.exp(x - shift)
            place += stride_c
        top = tl.where(top > -float("inf"), top, 0.0)
    key += item * row_n + p
    for c in tl.range(0, channels, loop_unroll_factor=4):
        slot = tl.load(slots + c)
        x = tl.load(input, mask=inside & (slot >= 0), other=0.0)
        if ACTIVATION == "softmax":
            x = tl.exp(x - top) / total
        if ACTIVATION == "sigmoid":
            x = 1 / (1 + tl.exp(-x))
        foreground = label == c + (labels - channels)  # a single channel is class 1 of 2
        code = encode(tl.abs(foreground.to(real) - x), foreground, valid)
        tl.store(key + slot * row_k, code, mask=inside & (slot >= 0))
        input += stride_c


@triton.jit
def activation_backward_kernel(
    input, target, slots, slopes, out, points, blocks, channels, ignore, stride_n, stride_c, stride_p,
    target_n, target_p, row_n, row_k, ACTIVATION: tl.constexpr, IGNORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the gradient by the probabilities of the classes with a slot to that by the input, out (N, C, P)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < points
    valid = inside
    if IGNORE:
        valid = inside & (tl.load(target + item * target_n + p * target_p, mask=inside, other=0) != ignore)
    real = out.dtype.element_ty
    top, total, product = tl.full([BLOCK], -float("inf"), real), tl.zeros([BLOCK], real), tl.zeros([BLOCK], real)
    slopes += item * row_n + p
    input += item * stride_n + p * stride_p
    place = input
    if ACTIVATION == "softmax":
        for c in tl.range(0, channels, loop_unroll_factor=4):
            slot = tl.load(slots + c)
            x = tl.load(place, mask=valid, other=0.0)
            g = tl.load(slopes + slot * row_k, mask=valid & (slot >= 0), other=0.0)
            before = top
            top, shift = raised(top, x)
            scale, e = tl.exp(before - shift), tl.exp(x - shift)
            total = total * scale + e
            product = product * scale + e * g
            place += stride_c
        top = tl.where(top > -float("inf"), top, 0.0)
        product /= total
    out += item * channels * points + p
    for c in tl.range(0, channels, loop_unroll_factor=4):
        slot = tl.load(slots + c)
        g = tl.load(slopes + slot * row_k, mask=valid & (slot >= 0), other=0.0)
        if ACTIVATION != "none":
            x = tl.load(input, mask=valid, other=0.0)
            if ACTIVATION == "softmax":
                g = tl.exp(x - top) / total * (g - product)
            else:
                x = 1 / (1 + tl.exp(-x))
                g *= x * (1 - x)
        tl.store(out, tl.where(valid, g, 0.0), mask=inside)  # an ignored pixel's logits may be anything, NaN too
        input += stride_c
        out += points


class Problem:
    """Keys of all sets and classes, in rows, and what launches over their pixels have in common."""

    def __init__(
        self,
        input: Tensor,
        target: Tensor,
        class_weight: Tensor | None,
        classes: Sequence[int],
        present: bool,
        per_image: bool,
        ignore_index: int | None,
        from_logits: bool,
    ):
        self.input, self.target, self.present = input, target, present
        batch, channels, points = input.shape
        self.blocks = cdiv(points, TILE)
        self.ignore = ignore_index or 0
        self.sets, self.count = batch if per_image else 1, len(classes)
        indices, self.slots = class_tensors(classes, channels, input.device)
        self.weight = None if class_weight is None else class_weight.index_select(0, indices)
        row_n, row_k = (self.count * points, points) if per_image else (points, batch * points)
        self.strides = *input.stride(), *target.stride(), row_n, row_k
        self.options = {
            "ACTIVATION": "none" if not from_logits else "sigmoid" if channels == 1 else "softmax",
            "IGNORE": ignore_index is not None,
            "BLOCK": TILE,
        }
        self.unsorted = new_keys(self.sets * self.count, batch * points // self.sets, input)
        wrong = torch.empty(batch * self.blocks, dtype=torch.int32, device=input.device)
        labels = max(channels, 2)
        keys_kernel[wrong.shape](
            input, target, self.slots, self.unsorted, wrong, points, self.blocks, channels, labels, self.ignore,
            *self.strides, **self.options,
        )  # fmt: skip
        check_labels(wrong, labels, ignore_index)
        self.keys, self.order, self.ends = sort_keys(self.unsorted)

    def factors(self) -> Tensor:
        """What each class counts in the loss of its set, (S, K)."""
        factor = self.input.new_ones(self.sets, self.count)
        if self.present:
            factor = (self.ends[:, -1] > 0).view(self.sets, self.count).to(factor.dtype)
        mean = factor / factor.sum(1, keepdim=True).clamp(min=1)
        return mean if self.weight is None else self.weight * mean

    def gradient(self, grad: Tensor) -> Tensor:
        """Of the input, (N, C, P); grad (S,)."""
        batch, channels, points = self.input.shape
        nan = has_nan(self.keys).view(self.sets, self.count).any(1)
        factor = grad.masked_fill(nan, float("nan"))[:, None] * self.factors()
        slopes = self.unsorted.view(self.input.dtype)  # the sort is done with this memory
        write_slopes(slopes, self.keys, self.order, self.ends, factor.flatten())
        out = self.input.new_empty(self.input.shape)
        activation_backward_kernel[(batch * self.blocks,)](
            self.input, self.target, self.slots, slopes, out, points, self.blocks, channels, self.ignore,
            *self.strides, **self.options,
        )  # fmt: skip
        return out


def class_tensors(classes: Sequence[int], channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The classes' channels (K,), and each channel's place among the classes or -1, (C,).

    Made on the device: a copy from the host would wait for it, and can't be captured in a CUDA graph.
    """
    count, run = len(classes), range(classes[0], classes[0] + len(classes))
    indices = torch.arange(run.start, run.stop, device=device)
    if list(classes) != list(run):
        for slot, c in enumerate(classes):
            indices[slot] = c
    slots = indices.new_full((channels,), -1).scatter_(0, indices, torch.arange(count, device=device))
    return indices, slots


def lovasz_softmax(input: Tensor, target: Tensor, class_weight: Tensor | None, *options) -> Tensor:
    """input (N, C, P), target (N, P) to the loss of each set: (N,) per image, else (1,)."""
    _, _, per_image, *_ = options
    if input.numel() == 0:
        return input.new_zeros(input.shape[0] if per_image else 1)
    problem = Problem(input, target, class_weight, *options)
    rows = losses(problem.keys, problem.ends, input).view(problem.sets, problem.count)
    return (rows * problem.factors()).sum(1).to(input.dtype)


def lovasz_softmax_backward(
    grad: Tensor, input: Tensor, target: Tensor, class_weight: Tensor | None, *options
) -> Tensor:
    """Gradient of input, (N, C, P); grad (S,)."""
    if input.numel() == 0:
        return input.new_empty(input.shape)
    return Problem(input, target, class_weight, *options).gradient(grad)


_LAUNCHES = [{"ACTIVATION": activation, "IGNORE": True, "BLOCK": TILE} for activation in ("softmax", "sigmoid", "none")]
_PIXELS = {"target": "*i64", "slots": "*i64", "ignore": "i64", "row_n": "i64", "row_k": "i64"}
AOT = [
    entry
    for number, key in (("*fp32", "*i32"), ("*fp64", "*i64"))
    for entry in (
        (keys_kernel, {"input": number, "key": key, "wrong": "*i32", **_PIXELS}, _LAUNCHES),
        (activation_backward_kernel, {"input": number, "slopes": number, "out": number, **_PIXELS}, _LAUNCHES),
    )
]
