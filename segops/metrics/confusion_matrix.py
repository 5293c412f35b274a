"""segops.metrics.ConfusionMatrix: what mean IoU, Dice and the accuracies are made of."""

from __future__ import annotations

from torch import Tensor

from ..ops import confusion_matrix
from .accumulator import Accumulator, checked


class ConfusionMatrix(Accumulator):
    """Accumulates :func:`segops.confusion_matrix`: rows targets, columns predictions.

    Args:
        num_classes: C.
        ignore_index: pixels of this target are not counted. Default 255; ``None`` counts all.

    Raises:
        TypeError, ValueError: for options, labels or shapes that do not fit.

    Example:
        >>> import torch, segops
        >>> matrix = segops.metrics.ConfusionMatrix(3)
        >>> matrix.update(torch.tensor([[[0, 1, 1, 2]]]), torch.tensor([[[0, 1, 2, 255]]]))
        >>> segops.metrics.iou(matrix.compute())
        tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255):
        num_classes, ignore_index = checked(num_classes, ignore_index)
        super().__init__(num_classes, ignore_index, (num_classes, num_classes))

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        return confusion_matrix(prediction, target, self.num_classes, self.ignore_index)

    def compute(self) -> Tensor:
        """The matrix, ``(C, C)`` int64."""
        return self.sums
