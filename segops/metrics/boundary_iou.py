"""segops.metrics.boundary_iou: the IoU of what lies within some pixels of the boundaries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ..ops import confusion_matrix, distance_transform
from .accumulator import Accumulator, checked
from .boundaries import diagonal, dilated, shifted_labels
from .overlap import iou

DISTANCES = ("chessboard", "euclidean")


def boundary_iou(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int | None = 255,
    *,
    ratio: float = 0.02,
    distance: str = "chessboard",
) -> Tensor:
    """Boundary IoU of each class.

    Cheng, Girshick, Dollár, Berg and Kirillov, *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*,
    CVPR 2021: the IoU of two bands, of the pixels of a class's target mask and of its predicted mask that are within
    ``d = max(1, round(ratio * diagonal))`` pixels of the outside of their mask. What is beyond the image, and what is
    ignored, is outside of all masks. Counts are summed over the images of the batch.

    Args:
        prediction: labels ``(N, H, W)`` of any integer dtype, or logits ``(N, C, H, W)``.
        target: labels ``(N, H, W)``.
        num_classes: C.
        ignore_index: target of pixels that take no part. Default 255; ``None``: none.
        ratio: share of the image's diagonal. Default 0.02.
        distance: ``"chessboard"`` (default) is that of the published code, which erodes masks d times by 3 x 3;
            ``"euclidean"`` that of the paper's words.

    Returns:
        ``(C,)`` float64, NaN for a class that is absent; :func:`mean_over_classes` averages.

    Raises:
        TypeError, ValueError: for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> target = torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> target[:, 16:48, 16:48] = 1
        >>> segops.metrics.boundary_iou(target.roll(1, 2), target, 2)
        tensor([0.8373, 0.6000], dtype=torch.float64)
    """
    metric = BoundaryIoU(num_classes, ignore_index, ratio=ratio, distance=distance)
    metric.update(prediction, target)
    return metric.compute()


class BoundaryIoU(Accumulator):
    """Accumulates :func:`boundary_iou`, whose arguments it takes."""

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        *,
        ratio: float = 0.02,
        distance: str = "chessboard",
    ):
        num_classes, ignore_index = checked(num_classes, ignore_index)
        super().__init__(num_classes, ignore_index, (num_classes + 1, num_classes + 1))
        self.ratio = _checks.positive("ratio", ratio)
        self.distance = _checks.choice("distance", distance, DISTANCES)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The confusion matrix of the bands, what is in none as class 0."""
        predicted, wanted = (
            torch.where(self._is_near(labels), labels, 0)
            for labels in shifted_labels(prediction, target, self.num_classes, self.ignore_index)
        )
        return confusion_matrix(predicted, wanted, self.num_classes + 1, None)

    def compute(self) -> Tensor:
        """``(C,)`` float64, NaN for a class that is absent."""
        return iou(self.sums)[1:]

    def _is_near(self, labels: Tensor) -> Tensor:
        """Whether the nearest pixel of another label is within d."""
        d = max(1, round(self.ratio * diagonal(labels)))
        apart = distance_transform(F.pad(labels, (1, 1, 1, 1)), multilabel=True)
        near = apart <= d if self.distance == "euclidean" else dilated(apart < 1.5, d - 1)  # neighbours of 8 differ
        return near[:, 1:-1, 1:-1]
