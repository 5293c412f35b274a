"""segops.losses.dice_loss: one minus the soft Dice coefficient of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._contract import Loss, prepare
from ._regions import areas, ratio, reduce_classes, smoothing

LEAST_SCORE = 1e-7  # below it the logarithm is cut off, as segmentation models PyTorch does


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str | None = None,
    classes: str | Sequence[int] = "all",
    absent: str = "formula",
    smooth: float | Sequence[float] = 1e-5,
    squared: bool = False,
    micro: bool = False,
    log_loss: bool = False,
    per_image: bool = False,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "classes",
) -> Tensor:
    r"""Dice loss, ``1 - (2 sum p t + s) / (sum p + sum t + s')``, averaged over classes.

    Milletari, Navab and Ahmadi, *V-Net*, 3DV 2016; the sums run over the pixels of a set, an image or the batch.

    Args:
        logits: ``(N, C, H, W)`` or ``(N, H, W)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels, or 0 and 1 in the shape of ``logits``, or ``ignore_index``.
        mode: ``"multiclass"`` (softmax), ``"binary"`` (C = 1) or ``"multilabel"`` (sigmoid, each class against the
            rest, for labels ``(N, H, W)`` too). ``None`` (default): what the shapes say.
        classes: which are averaged, as in :func:`segops.lovasz_softmax`: ``"all"`` (default), ``"present"``, those with
            a pixel in the set, or a list. ``range(1, C)`` leaves out the background, as MONAI's
            ``include_background=False``.
        absent: what an averaged class without a pixel in the set costs: what the formula says (``"formula"``, default;
            close to 1 wherever anything is predicted), or 0 (``"zero"``, segmentation models PyTorch).
        smooth: s and s', one number or two. Default 1e-5, as MONAI's. Segmentation models PyTorch's ``smooth`` is half
            of this one; MMSegmentation's is ``(0, 0.002)``.
        squared: the squares of p in the denominator, as V-Net. Default ``False``.
        micro: sum over the classes too: one coefficient of all of them (MMSegmentation). Not with ``classes``.
        log_loss: ``-log`` of the coefficient in place of one minus it.
        per_image: a set is an image (``True``; MONAI, MMSegmentation) or the batch (``False``, default).
        class_weight: ``(C,)`` factors of the classes' losses. Not with ``micro``.
        ignore_index: target of what takes no part. Default 255; ``None``: nothing.
        reduction: ``"mean"`` (default) over classes, then over sets; ``"sum"``; or ``"none"``: ``(C,)``, or ``(N, C)``
            with ``per_image=True``, 0 for classes that are not averaged (without those that a list leaves out).
        mean_over: the mean over classes is divided by their number (``"classes"``, default; MONAI), or by the sum of
            their weights (``"weights"``; segmentation models PyTorch).

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast). A set in which all is ignored costs 0, with
        gradients of 0, and counts in the mean.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[[1, 0, 255]]])
        >>> segops.losses.dice_loss(logits, target)
        tensor(0.1806)
    """
    task = prepare(logits, target, ignore_index, mode)
    if micro and (class_weight is not None or classes != "all"):
        raise ValueError("micro: expected no class_weight and classes='all', since all classes are one")
    above, below = smoothing(smooth)
    found = areas(task, per_image, squared, micro)
    score = ratio(2 * found.overlap + above, found.predicted + found.actual + below)
    return reduce_classes(
        -torch.log(score.clamp(min=LEAST_SCORE)) if log_loss else 1 - score,
        found,
        task,
        classes=classes,
        absent=absent,
        class_weight=class_weight,
        per_image=per_image,
        reduction=reduction,
        mean_over=mean_over,
    )


class DiceLoss(Loss):
    """:func:`segops.losses.dice_loss` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.DiceLoss(classes="present", per_image=True)
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(dice_loss)
