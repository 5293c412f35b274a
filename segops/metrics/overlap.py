"""Scores of a confusion matrix (..., C, C), rows targets and columns predictions, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks

ABSENT = ("ignore", "zero", "one")


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class.

    Args:
        matrix: counts ``(..., C, C)``, rows targets and columns predictions.

    Returns:
        ``(..., C)`` float64: ``m[c, c] / (row sum + column sum - m[c, c])``; NaN for a class that is absent, neither in
        the target nor predicted. A class that is predicted only has 0.

    Raises:
        TypeError, ValueError: for what is no square matrix of numbers.

    Example:
        >>> import torch, segops
        >>> segops.metrics.iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        tensor([0.7500, 0.8000,    nan], dtype=torch.float64)
    """
    both, target, predicted = _counts(matrix)
    return both / (target + predicted - both)


def dice(matrix: Tensor) -> Tensor:
    """Dice score (F1) of each class, ``2 m[c, c] / (row sum + column sum)``; otherwise as :func:`iou`."""
    both, target, predicted = _counts(matrix)
    return 2 * both / (target + predicted)


def class_accuracy(matrix: Tensor) -> Tensor:
    """Share of each class's target pixels that are predicted right (its recall); NaN for a class without any.

    Otherwise as :func:`iou`.
    """
    both, target, _ = _counts(matrix)
    return both / target


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Share of all pixels that are predicted right, ``(...)`` float64; NaN where there are none."""
    both, target, _ = _counts(matrix)
    return both.sum(-1) / target.sum(-1)


def frequency_weighted_iou(matrix: Tensor) -> Tensor:
    """Mean of :func:`iou` weighted by the classes' shares of the target, ``(...)`` float64; NaN without any pixel."""
    _, target, _ = _counts(matrix)
    return (target * iou(matrix).nan_to_num(0)).sum(-1) / target.sum(-1)


def mean_iou(matrix: Tensor, absent: str = "ignore") -> Tensor:
    """Mean of :func:`iou` over classes, ``(...)`` float64; ``absent`` as in :func:`mean_over_classes`."""
    return mean_over_classes(iou(matrix), absent)


def mean_dice(matrix: Tensor, absent: str = "ignore") -> Tensor:
    """Mean of :func:`dice` over classes, ``(...)`` float64; ``absent`` as in :func:`mean_over_classes`."""
    return mean_over_classes(dice(matrix), absent)


def mean_accuracy(matrix: Tensor, absent: str = "ignore") -> Tensor:
    """Mean of :func:`class_accuracy` over classes, ``(...)`` float64; ``absent`` as in :func:`mean_over_classes`."""
    return mean_over_classes(class_accuracy(matrix), absent)


def mean_over_classes(scores: Tensor, absent: str = "ignore") -> Tensor:
    """Mean of the scores of classes.

    Args:
        scores: ``(..., C)``, NaN for a class without a score.
        absent: what such a class counts: ``"ignore"`` (default) leaves it out, as MMSegmentation does; ``"zero"`` and
            ``"one"`` count it as 0 (as torchmetrics does at the level of a class) or as 1 (segmentation models PyTorch
            by default, Berman's code).

    Returns:
        ``(...)``; NaN if every class is left out.

    Raises:
        TypeError, ValueError: for what is no such tensor or word.

    Example:
        >>> import torch, segops
        >>> scores = torch.tensor([0.5, float("nan"), 0.75])
        >>> [segops.metrics.mean_over_classes(scores, absent).item() for absent in ("ignore", "zero")]
        [0.625, 0.4166666567325592]
    """
    _checks.floating("scores", _checks.dense("scores", scores, "(..., C)"))
    if _checks.choice("absent", absent, ABSENT) == "ignore":
        return scores.nanmean(-1)
    return scores.nan_to_num(0 if absent == "zero" else 1).mean(-1)


def _counts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class the pixels that are both, in the target, and predicted."""
    _checks.dense("matrix", matrix, "(..., C, C)")
    if matrix.dtype == torch.bool or matrix.is_complex():
        raise TypeError(f"matrix: expected counts, got {matrix.dtype}")
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(f"matrix: expected shape (..., C, C) with C >= 1, got {_checks.shape(matrix)}")
    matrix = matrix.double()
    return matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)
