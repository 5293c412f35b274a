"""segops.cross_entropy_dice_focal: a weighted sum of three losses, made of segmentation_sums."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .lovasz_softmax import REDUCTIONS, _reduced
from .segmentation_sums import SegmentationSums, segmentation_sums


def cross_entropy_dice_focal(
    logits: Tensor,
    target: Tensor,
    *,
    cross_entropy: float = 1.0,
    dice: float = 1.0,
    focal: float = 1.0,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    label_smoothing: float = 0.0,
    gamma: float = 2.0,
    smooth: float = 1.0,
    classes: str = "present",
    per_image: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Weighted sum of cross entropy, soft Dice and focal loss, each logit read once and the softmax never written.

    With p the softmax, y the labels, w the class weights and sums over the valid pixels i of a set,

    .. math::
        CE = \sum_i -w_{y_i} \log p_{y_i} / \sum_i w_{y_i}, \qquad
        F = \sum_i -w_{y_i} (1 - p_{y_i})^\gamma \log p_{y_i} / \sum_i w_{y_i}, \\
        D = \frac{1}{K} \sum_c 1 - \frac{2 \sum_{i: y_i = c} p_c + s}{\sum_i p_c + \sum_{i: y_i = c} 1 + s}.

    CE is torch's ``cross_entropy``, label smoothing and weights included. F is Lin et al., *Focal Loss for Dense Object
    Detection*, 2017, equation 5, with w for alpha; with ``gamma=0`` it is CE without smoothing. D is Milletari et al.,
    *V-Net*, 2016, with p and not its square in the denominator. For any other convention there are the sums themselves,
    :func:`segops.segmentation_sums`.

    Args:
        logits: ``(N, C, ...)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, ...)`` integer labels from 0 to C - 1, or ``ignore_index``.
        cross_entropy, dice, focal: what each loss counts; one that counts 0 is left out. Default 1 each.
        class_weight: ``(C,)`` weights w of cross entropy and focal loss. Gets no gradient. Default: all 1.
        ignore_index: label of pixels that take no part; their gradient is 0. Default 255; ``None`` for none.
        label_smoothing: of the cross entropy, from 0 (default) to 1, as in torch.
        gamma: exponent of the focal loss, at least 0. Default 2.
        smooth: s of Dice, at least 0. Default 1.
        classes: which classes Dice averages over: ``"present"`` (default) those with a valid pixel in the set, or
            ``"all"``: one that is absent has the overlap 0.
        per_image: a set is an image (``True``) or the whole batch (``False``, default).
        reduction: of the sets' losses with ``per_image=True``: ``"mean"`` (default; every image counts, without a valid
            pixel as 0), ``"sum"`` or ``"none"``. The batch as one set has one loss, whatever the reduction.

    Returns:
        A scalar, or ``(N,)`` with ``per_image=True`` and ``reduction="none"``, in the dtype of ``logits`` (float32
        inside autocast). 0, with gradients of 0, where nothing is left to count.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or a label out of range (on CUDA a device-side
            assertion).

    Example:
        >>> import torch, segops
        >>> logits = torch.randn(2, 4, 32, 32, requires_grad=True)
        >>> target = torch.randint(0, 4, (2, 32, 32))
        >>> loss = segops.cross_entropy_dice_focal(logits, target, focal=0.5)
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([2, 4, 32, 32])
    """
    factors = [
        _checks.finite(name, x) for name, x in (("cross_entropy", cross_entropy), ("dice", dice), ("focal", focal))
    ]
    smoothing = _checks.fraction("label_smoothing", label_smoothing)
    if _checks.finite("smooth", smooth) < 0:
        raise ValueError(f"smooth: expected a number >= 0, got {smooth}")
    _checks.choice("classes", classes, ("present", "all"))
    _checks.choice("reduction", reduction, REDUCTIONS)
    sums = segmentation_sums(logits, target, ignore_index=ignore_index, gamma=gamma)
    weight = sums.pixels.new_ones(logits.shape[1])
    if class_weight is not None:
        weight = _checks.class_weight(class_weight, logits, "logits").to(weight.dtype)
    if not per_image:
        sums = SegmentationSums(*(x.sum(0, keepdim=True) for x in sums))
    terms = (
        lambda: _cross_entropy(sums, weight, smoothing),
        lambda: _dice(sums, smooth, classes == "present"),
        lambda: _over((weight * sums.focal).sum(1), (weight * sums.pixels).sum(1)),
    )
    losses = sums.overlap.sum(1) * 0  # of float32 or float64, and differentiable, if no loss counts
    for factor, term in zip(factors, terms, strict=True):
        losses = losses + factor * term() if factor else losses
    return _checks.narrowed(_reduced(losses, per_image, reduction), logits)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and the numerator itself, 0, where there is nothing to divide by."""
    return numerator / torch.where(denominator > 0, denominator, 1)


def _cross_entropy(sums: SegmentationSums, weight: Tensor, smoothing: float) -> Tensor:
    """(S,); of each set."""
    total = (1 - smoothing) * (weight * sums.cross_entropy).sum(1)
    if smoothing:
        total = total + smoothing / len(weight) * (weight * sums.uniform).sum(1)
    return _over(total, (weight * sums.pixels).sum(1))


def _dice(sums: SegmentationSums, smooth: float, present: bool) -> Tensor:
    """(S,); a class that nobody predicts and no pixel has counts as perfect."""
    loss = _over(sums.predicted + sums.pixels - 2 * sums.overlap, sums.predicted + sums.pixels + smooth)
    counted = sums.pixels > 0 if present else torch.ones_like(sums.pixels, dtype=torch.bool)
    return _over(torch.where(counted, loss, 0).sum(1), counted.sum(1))
