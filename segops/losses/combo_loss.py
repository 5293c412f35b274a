"""segops.losses.combo_loss: weighted binary cross entropy and the Dice coefficient together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ..ops.lovasz_softmax import REDUCTIONS, _reduced
from ._contract import Loss, Task, per_class, prepare, quotient
from ._regions import areas, ratio

VARIANTS = ("paper", "nonnegative")


def combo_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str | None = None,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    variant: str = "paper",
    class_weight: Tensor | None = None,
    per_image: bool = False,
    ignore_index: int | None = 255,
    reduction: str = "mean",
) -> Tensor:
    r"""Combo loss: ``alpha`` times a weighted cross entropy minus ``1 - alpha`` times the Dice coefficients.

    Taghanaki et al., *Combo Loss: Handling Input and Output Imbalance in Multi-Organ Segmentation*, 2018, equation 3:
    ``-alpha / n sum [beta t log p + (1 - beta) (1 - t) log(1 - p)]
    - (1 - alpha) sum_c (2 sum p t + s) / (sum p + sum t + s)``, n the number of pixels times classes.

    Args:
        logits: ``(N, C, H, W)`` or ``(N, H, W)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels, or 0 and 1 in the shape of ``logits``, or ``ignore_index``.
        mode: ``"multiclass"`` (p is the softmax), ``"binary"`` (C = 1) or ``"multilabel"`` (sigmoid). ``None``
            (default): what the shapes say.
        alpha: share of the cross entropy, from 0 to 1. Default 0.5.
        beta: price of false negatives, ``1 - beta`` of false positives. Default 0.5.
        smooth: s. Default 1.
        variant: ``"paper"`` (default), from ``-(1 - alpha) C`` on, or ``"nonnegative"``, with one minus each
            coefficient: larger by ``(1 - alpha) C``, the same gradient.
        class_weight: ``(C,)`` factors of each class's coefficient and of its terms in the cross entropy.
        per_image: a set, over which means and sums run, is an image (``True``) or the batch (``False``, default).
        ignore_index: target of what takes no part. Default 255; ``None``: nothing.
        reduction: of the sets' losses with ``per_image=True``: ``"mean"`` (default), ``"sum"`` or ``"none"``, ``(N,)``.
            The batch as one set has one loss, whatever the reduction.

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast). A set in which all is ignored costs 0, with
        gradients of 0, and counts in the mean.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[[1, 0, 255]]])
        >>> segops.losses.combo_loss(logits, target, variant="nonnegative")
        tensor(0.1166)
    """
    task = prepare(logits, target, ignore_index, mode)
    alpha, beta = _checks.fraction("alpha", alpha), _checks.fraction("beta", beta)
    if _checks.finite("smooth", smooth) < 0:
        raise ValueError(f"smooth: expected a number >= 0, got {smooth}")
    _checks.choice("variant", variant, VARIANTS)
    _checks.choice("reduction", reduction, REDUCTIONS)
    weight = per_class("class_weight", class_weight, task)
    found = areas(task, per_image)
    coefficient = ratio(2 * found.overlap + smooth, found.predicted + found.actual + smooth)
    overlap = torch.where(found.seen, coefficient - VARIANTS.index(variant), 0)
    overlap = (overlap if weight is None else overlap * weight).sum(1)
    loss = alpha * _entropy(task, beta, weight, per_image) - (1 - alpha) * overlap
    return _checks.narrowed(_reduced(loss, per_image, reduction), task.like)


def _entropy(task: Task, beta: float, weight: Tensor | None, per_image: bool) -> Tensor:
    """The weighted binary cross entropy of each set (S,)."""
    x = _odds(task.x) if task.mode == "multiclass" else task.x
    t = task.positive().to(x.dtype)
    price = (1 - beta) + (2 * beta - 1) * t
    price = price if weight is None else price * weight.view(-1, 1, 1)
    loss = F.binary_cross_entropy_with_logits(x, t, price, reduction="none")
    dims = (1, 2, 3) if per_image else (0, 1, 2, 3)
    total = torch.where(task.valid, loss, 0).sum(dims)
    return quotient(total, task.valid.expand_as(t).sum(dims).to(total.dtype)).view(-1)


def _odds(x: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of the softmax p, without subtracting what cancels: the highest p of a pixel, which may be
    next to 1, against the sum of the others; the others, at most 1/2, from one."""
    highest = torch.zeros_like(x, dtype=torch.bool).scatter(1, x.argmax(1, keepdim=True), True)
    others = x.masked_fill(highest, float("-inf")).logsumexp(1, keepdim=True)
    log_p = x.log_softmax(1)
    return torch.where(highest, x - others, log_p - torch.log1p(-log_p.exp().masked_fill(highest, 0)))


class ComboLoss(Loss):
    """:func:`segops.losses.combo_loss` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.ComboLoss(alpha=0.5, beta=0.7)
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(combo_loss)
