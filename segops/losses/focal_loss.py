"""segops.losses.focal_loss: cross entropy that looks away from what is easy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ._contract import Loss, Task, label_entropy, pixel_weight, power, prepare, quotient, reduce_pixels


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str | None = None,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
    reduced_threshold: float | None = None,
    normalized: bool = False,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "valid",
) -> Tensor:
    r"""Focal loss, ``-a_t (1 - p_t)^gamma log p_t``.

    Lin, Goyal, Girshick, He and Dollar, *Focal Loss for Dense Object Detection*, ICCV 2017. With ``gamma=0`` it is
    (binary) cross entropy.

    Args:
        logits: ``(N, C, H, W)`` or ``(N, H, W)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels, or 0 and 1 in the shape of ``logits``, or ``ignore_index``.
        mode: ``"multiclass"`` (softmax, one term a pixel), ``"binary"`` (C = 1) or ``"multilabel"`` (sigmoid, C terms a
            pixel, each class against the rest, for labels ``(N, H, W)`` too: what MMSegmentation, segmentation models
            PyTorch and MONAI do by default). ``None`` (default): what the shapes say.
        gamma: how fast easy pixels lose weight, >= 0. Default 2.
        alpha: with a sigmoid, the weight of positives, ``1 - alpha`` that of negatives (the paper: 0.25); with a
            softmax, ``1 - alpha`` for class 0 and ``alpha`` for the others (MONAI, kornia). A list has one for each
            class. ``None`` (default): 1.
        reduced_threshold: t of the reduced focal loss (Sergievskiy and Ponamarev, 2019): ``(1 - p_t)^gamma`` becomes
            1 where ``p_t < t`` and ``((1 - p_t) / t)^gamma`` elsewhere. ``None`` (default): off.
        normalized: divide the terms by the sum of ``(1 - p_t)^gamma`` over valid pixels: of each class with a sigmoid,
            of all with a softmax. Default ``False``.
        class_weight: ``(C,)`` factors of the terms: of a pixel's label with a softmax, of a class with a sigmoid.
        ignore_index: target of what takes no part. Default 255; ``None``: nothing.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``: the terms, ``(N, H, W)`` with a softmax, in the shape
            of ``logits`` with a sigmoid, 0 where ignored.
        mean_over: the mean is the sum divided by the number of valid terms (``"valid"``, default), by the sum of their
            class weights (``"weights"``, segmentation models PyTorch), by the number of terms, ignored ones too
            (``"all"``, MMSegmentation), or by that of elements of ``logits`` (``"elements"``, MONAI and kornia with a
            softmax, C times as many as pixels).

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast); 0, with gradients of 0, if all is ignored.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[[1, 0, 255]]])
        >>> segops.losses.focal_loss(logits, target, alpha=0.25)
        tensor(0.0087)
    """
    task = prepare(logits, target, ignore_index, mode)
    if _checks.finite("gamma", gamma) < 0:
        raise ValueError(f"gamma: expected a number >= 0, got {gamma}")
    factor, alpha_t = 1.0, _alpha(alpha, task)
    if task.mode == "multiclass":
        entropy = label_entropy(task.x.log_softmax(1), task)
    else:
        entropy = F.binary_cross_entropy_with_logits(task.x, task.label.to(task.x.dtype), reduction="none")
    miss = -torch.expm1(-entropy)  # 1 - p_t, which keeps its digits where p_t is near 1
    if reduced_threshold is not None:
        factor = 1 / _checks.positive("reduced_threshold", reduced_threshold)
    focus = power(miss * factor, gamma)
    if reduced_threshold is not None:
        focus = torch.where(1 - miss < reduced_threshold, 1, focus)
    loss = focus * entropy
    if normalized:
        dims = (0, 2, 3) if task.mode != "multiclass" else (0, 1, 2, 3)
        loss = quotient(loss, torch.where(task.valid, focus, 0).sum(dims, keepdim=True))
    weight = pixel_weight(class_weight, task)
    for w in (alpha_t, weight):
        loss = loss if w is None else loss * w
    return reduce_pixels(loss, weight, task.valid, task, reduction, mean_over)


def _alpha(alpha: float | Sequence[float] | None, task: Task) -> Tensor | None:
    """The weight alpha_t of each term: (N, 1, H, W) in the multiclass mode, else (N, C, H, W)."""
    if alpha is None:
        return None
    channels, softmax = task.x.shape[1], task.mode == "multiclass"
    if not isinstance(alpha, Sequence) or isinstance(alpha, str):
        a = _checks.fraction("alpha", alpha)
        values = [1 - a if softmax and c == 0 else a for c in range(channels)]
    elif len(alpha) != channels:
        raise ValueError(f"alpha: expected one number or {channels}, got {len(alpha)}")
    else:
        values = [(_checks.positive if softmax else _checks.fraction)(f"alpha[{i}]", a) for i, a in enumerate(alpha)]
    weight = _checks.filled(values, task.x.dtype, task.x.device)
    if softmax:
        return weight[task.label].unsqueeze(1)
    weight = weight.view(1, -1, 1, 1)
    return torch.where(task.label, weight, 1 - weight)


class FocalLoss(Loss):
    """:func:`segops.losses.focal_loss` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.FocalLoss(gamma=2, alpha=0.25, mode="multilabel")
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(focal_loss)
