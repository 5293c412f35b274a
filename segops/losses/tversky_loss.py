"""segops.losses.tversky_loss: Dice with prices for false positives and false negatives; its focal form."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .. import _checks
from ._contract import Loss, power, prepare
from ._regions import areas, ratio, reduce_classes, smoothing

EXPONENT_OF = ("classes", "mean")


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.0,
    gamma_of: str = "classes",
    classes: str | Sequence[int] = "all",
    absent: str = "formula",
    smooth: float | Sequence[float] = 1e-5,
    per_image: bool = False,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "classes",
) -> Tensor:
    r"""Tversky loss, ``(1 - (TP + s) / (TP + alpha FP + beta FN + s'))^gamma``, averaged over classes.

    Salehi, Erdogmus and Gholipour, *Tversky Loss Function for Image Segmentation Using 3D Fully Convolutional Deep
    Networks*, MLMI 2017. ``alpha = beta = 0.5`` is the Dice loss (with twice its ``smooth``), ``alpha = beta = 1`` the
    soft Jaccard loss.

    Args:
        alpha: price of false positives, >= 0. Default 0.3, as in the paper and MMSegmentation; segmentation models
            PyTorch and MONAI: 0.5.
        beta: price of false negatives, >= 0. Default 0.7; segmentation models PyTorch and MONAI: 0.5.
        gamma: exponent, > 0. Default 1: none.
        gamma_of: what it is the exponent of: the loss of each class (``"classes"``, default), or their mean in the set
            (``"mean"``, segmentation models PyTorch; with ``reduction="mean"``).
        smooth: s and s', one number or two. Default 1e-5, as MONAI's; MMSegmentation: 1.
        logits, target, mode, classes, absent, per_image, class_weight, ignore_index, reduction, mean_over: as in
            :func:`segops.losses.dice_loss`.

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast). A set in which all is ignored costs 0, with
        gradients of 0, and counts in the mean.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[[1, 0, 255]]])
        >>> segops.losses.tversky_loss(logits, target)
        tensor(0.1571)
    """
    task = prepare(logits, target, ignore_index, mode)
    for name, value in {"alpha": alpha, "beta": beta}.items():
        if _checks.finite(name, value) < 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value}")
    _checks.positive("gamma", gamma)
    _checks.choice("gamma_of", gamma_of, EXPONENT_OF)
    of_mean = gamma_of == "mean"
    if of_mean and reduction != "mean":
        raise ValueError(f"gamma_of: expected 'classes' with reduction={reduction!r}, got 'mean'")
    above, below = smoothing(smooth)
    found = areas(task, per_image)
    false_positive, false_negative = found.predicted - found.overlap, found.actual - found.overlap
    score = ratio(found.overlap + above, found.overlap + alpha * false_positive + beta * false_negative + below)
    return reduce_classes(
        1 - score if of_mean else power(1 - score, gamma),
        found,
        task,
        classes=classes,
        absent=absent,
        class_weight=class_weight,
        per_image=per_image,
        reduction=reduction,
        mean_over=mean_over,
        exponent=gamma if of_mean else 1.0,
    )


def focal_tversky_loss(logits: Tensor, target: Tensor, *, gamma: float = 0.75, **options: Any) -> Tensor:
    r"""Focal Tversky loss: :func:`segops.losses.tversky_loss` with an exponent that is not 1 by default.

    Abraham and Khan, *A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation*, ISBI
    2019. The paper writes the exponent as ``1 / gamma`` with gamma = 4/3, which is 0.75 here, and swaps the names of
    ``alpha`` and ``beta``; the prices are the same.

    Args:
        gamma: exponent, > 0. Default 0.75. Above 1, hard classes count more; below 1, easy ones keep a gradient.
        logits, target, options: as in :func:`segops.losses.tversky_loss`, its returns and errors too.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[[1, 0, 255]]])
        >>> segops.losses.focal_tversky_loss(logits, target)
        tensor(0.2495)
    """
    return tversky_loss(logits, target, gamma=gamma, **options)


# What help() shows, and what the module checks its options with.
focal_tversky_loss.__signature__ = inspect.signature(partial(tversky_loss, gamma=0.75))  # type: ignore[attr-defined]


class TverskyLoss(Loss):
    """:func:`segops.losses.tversky_loss` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.TverskyLoss(alpha=0.3, beta=0.7)
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(tversky_loss)


class FocalTverskyLoss(Loss):
    """:func:`segops.losses.focal_tversky_loss` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.FocalTverskyLoss(gamma=0.75)
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(focal_tversky_loss)
