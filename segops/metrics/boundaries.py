"""Labels and their boundaries, as the boundary metrics need them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ..ops import confusion_matrix


def shifted_labels(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Checked predictions (or logits) and targets (N, H, W) as labels from 1 to C, 0 where the target is ignored."""
    _checks.tensor("target", target, 3, "(N, H, W)")
    confusion_matrix(prediction, target, num_classes, ignore_index)  # which checks dtypes, shapes and labels
    labels = prediction.argmax(1) if prediction.is_floating_point() else prediction
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target.long() != ignore_index
    dtype = torch.uint8 if num_classes < 255 else torch.int32

    def shifted(x: Tensor) -> Tensor:
        return torch.where(valid, x.to(dtype) + 1, 0)

    return shifted(labels), shifted(target)


def diagonal(image: Tensor) -> float:
    """Length of the diagonal of (..., H, W) in pixels."""
    height, width = image.shape[-2:]
    return (height**2 + width**2) ** 0.5


def contours(labels: Tensor) -> Tensor:
    """Whether a pixel has a neighbour (of 4) of another label; 0 is no label, and has none."""
    out = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        first, second = labels.narrow(dim, 0, labels.shape[dim] - 1), labels.narrow(dim, 1, labels.shape[dim] - 1)
        differs = (first != second) & (first > 0) & (second > 0)
        out.narrow(dim, 0, labels.shape[dim] - 1).logical_or_(differs)
        out.narrow(dim, 1, labels.shape[dim] - 1).logical_or_(differs)
    return out


def dilated(mask: Tensor, radius: int) -> Tensor:
    """What is within ``radius`` rows and columns of a pixel of ``mask`` (N, H, W); the cost does not depend on it."""
    for dim, margin in ((2, (radius + 1, radius)), (1, (0, 0, radius + 1, radius))):
        size, sums = mask.shape[dim], F.pad(mask, margin).cumsum(dim, dtype=torch.int32)
        mask = sums.narrow(dim, 2 * radius + 1, size) > sums.narrow(dim, 0, size)
    return mask
