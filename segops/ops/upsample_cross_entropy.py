"""segops.upsample_cross_entropy: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import upsample_cross_entropy as reference
from .lovasz_softmax import REDUCTIONS


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    align_corners: bool = False,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of bilinearly up-sampled logits, which are never written at full size.

    The same number as ``cross_entropy(interpolate(logits, size, mode="bilinear"), target)``, the last two steps of
    nearly every segmentation network in training, where full-size logits, their softmax and its gradient are most of
    what memory holds. Here it is two numbers for each pixel.

    Bilinear up-sampling inside the network is that of Long, Shelhamer and Darrell (FCN, CVPR 2015).

    Args:
        logits: ``(N, C, h, w)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels from 0 to C - 1, or ``ignore_index``. H and W may be any size, also smaller
            than h and w (as in torch, without antialiasing).
        size: (H, W), or one number for both, for checking. Default: that of ``target``.
        align_corners: as in ``torch.nn.functional.interpolate``. Default ``False``.
        class_weight: ``(C,)`` weights of the labels, as in ``torch.nn.functional.cross_entropy``. Gets no gradient.
        ignore_index: label of pixels that take no part. Default 255; ``None`` for none.
        label_smoothing: from 0 (default) to 1, as in ``torch.nn.functional.cross_entropy``.
        reduction: ``"mean"`` (default) over the valid pixels, weighted with the weights of their labels; ``"sum"``; or
            ``"none"``, the loss of each pixel.

    Returns:
        A scalar, or ``(N, H, W)`` with ``reduction="none"``, in the dtype of ``logits`` (float32 inside autocast).
        0, with gradients of 0, where every pixel is ignored (torch has NaN there).

    Differentiable once with respect to ``logits``. Logits that are not finite make the losses around them NaN.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or a label out of range (on CUDA a device-side
            assertion, as in ``torch.nn.functional.cross_entropy``, so that the host need not wait).

    Example:
        >>> import torch, segops
        >>> logits = torch.randn(2, 19, 16, 32, requires_grad=True)
        >>> target = torch.randint(0, 19, (2, 128, 256))
        >>> loss = segops.upsample_cross_entropy(logits, target)
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([2, 19, 16, 32])
    """
    _checks.logit_map("logits", logits)
    target = _checks.labels("target", target, logits, "logits")
    if target.dim() != 3 or target.shape[0] != logits.shape[0] or 0 in target.shape[1:]:
        form = f"({logits.shape[0]}, H, W) with at least one row and column"
        raise ValueError(f"target: expected shape {form}, got {_checks.shape(target)}")
    if size is not None and tuple(_checks.pair("size", size, 1)) != tuple(target.shape[1:]):
        raise ValueError(f"size: expected {tuple(target.shape[1:])} like target, got {size}")
    smoothing = _checks.fraction("label_smoothing", label_smoothing)
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    _checks.choice("reduction", reduction, REDUCTIONS)
    wide = _checks.widened(logits)
    weight = None if class_weight is None else _checks.class_weight(class_weight, logits, "logits").to(wide.dtype)
    options = weight, bool(align_corners), ignore_index, smoothing
    losses = _registry.call(torch.ops.segops.upsample_cross_entropy, wide, target, *options)[0]
    if reduction != "none":
        losses = losses.sum()
    if reduction == "mean":
        losses = losses / _total_weight(target, weight, ignore_index, losses)
    return _checks.narrowed(losses, logits)


def _total_weight(target: Tensor, weight: Tensor | None, ignore_index: int | None, like: Tensor) -> Tensor:
    """Of all valid pixels; 1 where there is none, since their loss is 0."""
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    total = valid.sum() if weight is None else weight[target * valid].where(valid, 0).sum()
    return torch.where(total > 0, total, 1).to(like.dtype)


def _fake(input: Tensor, target: Tensor, *rest) -> tuple[Tensor, Tensor]:
    return input.new_empty(target.shape), input.new_empty(target.shape)


def _setup_context(ctx, inputs, output) -> None:
    input, target, class_weight, *ctx.options = inputs
    ctx.save_for_backward(input, target, output[1], class_weight)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _grad_lse: Tensor):
    grad_input = torch.ops.segops.upsample_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.options)
    return grad_input, None, None, None, None, None


def _fake_backward(grad: Tensor, input: Tensor, *rest) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


_OPTIONS = "Tensor? class_weight, bool align_corners, int? ignore_index, float smoothing"
_registry.register(
    f"upsample_cross_entropy(Tensor input, Tensor target, {_OPTIONS}) -> (Tensor, Tensor)",
    file="upsample_cross_entropy",
    reference=reference.upsample_cross_entropy,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    f"upsample_cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor lse, {_OPTIONS}) -> Tensor",
    file="upsample_cross_entropy",
    reference=reference.upsample_cross_entropy_backward,
    fake=_fake_backward,
    batch=(0, 1, 2, 3),
)
