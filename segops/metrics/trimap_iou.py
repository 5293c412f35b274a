"""segops.metrics.trimap_iou: the IoU of the pixels near the boundaries of the target."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..ops import confusion_matrix, distance_transform
from .accumulator import Accumulator, checked
from .boundaries import shifted_labels
from .overlap import iou


def trimap_iou(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = 255, *, width: float
) -> Tensor:
    """IoU of each class within a band around the boundaries of the target.

    Only pixels count whose distance to the nearest pixel of another target, ignored or not, is at most ``width``
    (Kohli, Ladický and Torr, *Robust Higher Order Potentials for Enforcing Label Consistency*, IJCV 2009; DeepLab takes
    the band around Pascal VOC's void, which is such a boundary). Counts are summed over the images of the batch.

    Args:
        prediction: labels ``(N, H, W)`` of any integer dtype, or logits ``(N, C, H, W)``.
        target: labels ``(N, H, W)``.
        num_classes: C.
        ignore_index: target of pixels that take no part. Default 255; ``None``: none.
        width: Euclidean distance in pixels, to either side of a boundary.

    Returns:
        ``(C,)`` float64, NaN for a class that is absent from the band; :func:`mean_over_classes` averages.

    Raises:
        TypeError, ValueError: for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> target = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> segops.metrics.trimap_iou(torch.tensor([[[1, 0, 0, 0, 1, 1]]]), target, 2, width=2)
        tensor([0.6667, 0.5000], dtype=torch.float64)
    """
    metric = TrimapIoU(num_classes, ignore_index, width=width)
    metric.update(prediction, target)
    return metric.compute()


class TrimapIoU(Accumulator):
    """Accumulates :func:`trimap_iou`, whose arguments it takes."""

    def __init__(self, num_classes: int, ignore_index: int | None = 255, *, width: float):
        num_classes, ignore_index = checked(num_classes, ignore_index)
        super().__init__(num_classes, ignore_index, (num_classes, num_classes))
        self.width = _checks.positive("width", width)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The confusion matrix of the band."""
        predicted, wanted = shifted_labels(prediction, target, self.num_classes, self.ignore_index)
        near = distance_transform(wanted, multilabel=True) <= self.width
        matrix = confusion_matrix(predicted, torch.where(near, wanted, 0), self.num_classes + 1, ignore_index=0)
        return matrix[1:, 1:]

    def compute(self) -> Tensor:
        """``(C,)`` float64, NaN for a class that is absent."""
        return iou(self.sums)
