"""segops.segmentation_sums: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import segmentation_sums as reference


class SegmentationSums(NamedTuple):
    """Sums over the valid pixels of each image, ``(N, C)`` each; p is the softmax, y a pixel's label."""

    overlap: Tensor
    """Of p_c where y = c."""
    predicted: Tensor
    """Of p_c."""
    pixels: Tensor
    """Of 1 where y = c."""
    cross_entropy: Tensor
    """Of -log p_c where y = c."""
    focal: Tensor
    """Of -(1 - p_c)^gamma log p_c where y = c."""
    uniform: Tensor
    """Of -log p_c, what label smoothing adds."""


def segmentation_sums(
    logits: Tensor, target: Tensor, *, ignore_index: int | None = 255, gamma: float = 2.0
) -> SegmentationSums:
    r"""The sums over pixels that cross entropy, Dice, Tversky, Jaccard and focal losses are made of.

    One pass over the logits, one more for the gradient; the softmax is never written. What is left of a loss are a few
    operations on ``(N, C)`` numbers, so that any convention is plain PyTorch, sums over the batch included:

    .. code-block:: python

        s = segops.segmentation_sums(logits, target)
        dice = (2 * s.overlap / (s.predicted + s.pixels).clamp(min=1e-6)).mean()
        false_negatives, false_positives = s.pixels - s.overlap, s.predicted - s.overlap  # for Tversky losses
        cross_entropy = s.cross_entropy.sum() / s.pixels.sum()

    :func:`segops.cross_entropy_dice_focal` is the usual choice of them.

    Args:
        logits: ``(N, C, ...)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, ...)`` integer labels from 0 to C - 1, or ``ignore_index``.
        ignore_index: label of pixels that take no part; their gradient is 0, whatever their logits are. Default 255;
            ``None`` for none.
        gamma: exponent of the focal sum, at least 0 (0: the cross entropy). Default 2. Lin et al., *Focal Loss for
            Dense Object Detection*, 2017, equation 4.

    Returns:
        ``SegmentationSums(overlap, predicted, pixels, cross_entropy, focal, uniform)``, ``(N, C)`` each, in float32, or
        float64 for float64 logits: halves could not hold them.

    Differentiable once with respect to ``logits``. A NaN at a valid pixel reaches the sums of its image alone.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or a label out of range (on CUDA a device-side
            assertion, as in ``torch.nn.functional.cross_entropy``, so that the host need not wait).

    Example:
        >>> import torch, segops
        >>> logits, target = torch.randn(2, 4, 32, 32), torch.randint(0, 4, (2, 32, 32))
        >>> sums = segops.segmentation_sums(logits, target)
        >>> sums.overlap.shape, sums.pixels.sum().item()
        (torch.Size([2, 4]), 2048.0)
    """
    target = _check_pixels(logits, target)
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    gamma = _checks.finite("gamma", gamma)
    if gamma < 0:
        raise ValueError(f"gamma: expected a number >= 0, got {gamma}")
    wide = _checks.widened(logits).flatten(2)
    sums = _registry.call(torch.ops.segops.segmentation_sums, wide, target.flatten(1), ignore_index, gamma)
    return SegmentationSums(*sums.unbind(1))


def _check_pixels(logits: Tensor, target: Tensor) -> Tensor:
    """The target as int64, of logits (N, C, ...) and a target (N, ...) that go together."""
    _checks.floating("logits", _checks.dense("logits", logits, "(N, C, ...)"))
    if logits.dim() < 3 or logits.shape[1] == 0:
        raise ValueError(f"logits: expected shape (N, C, ...) with C >= 1, got {_checks.shape(logits)}")
    target = _checks.labels("target", target, logits, "logits")
    if (logits.shape[0], *logits.shape[2:]) != tuple(target.shape):
        form = ", ".join(map(str, (logits.shape[0], *logits.shape[2:])))
        raise ValueError(f"target: expected shape ({form}) to go with logits, got {_checks.shape(target)}")
    return target


def _fake(input: Tensor, target: Tensor, ignore_index: int | None, gamma: float) -> Tensor:
    return input.new_empty(input.shape[0], len(SegmentationSums._fields), input.shape[1])


def _setup_context(ctx, inputs, output) -> None:
    input, target, *ctx.options = inputs
    ctx.save_for_backward(input, target)


def _backward(ctx, grad: Tensor):
    return torch.ops.segops.segmentation_sums_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


def _fake_backward(grad: Tensor, input: Tensor, *rest) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


_ARGUMENTS = "Tensor input, Tensor target, int? ignore_index, float gamma"
_registry.register(
    f"segmentation_sums({_ARGUMENTS}) -> Tensor",
    file="segmentation_sums",
    reference=reference.segmentation_sums,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    f"segmentation_sums_backward(Tensor grad, {_ARGUMENTS}) -> Tensor",
    file="segmentation_sums",
    reference=reference.segmentation_sums_backward,
    fake=_fake_backward,
    batch=(0, 1, 2),
)
