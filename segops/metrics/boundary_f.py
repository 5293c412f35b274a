"""segops.metrics.boundary_f: how well contours match, up to a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..ops import distance_transform
from .accumulator import Accumulator, checked
from .boundaries import contours, diagonal, shifted_labels


def boundary_f(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = 255, *, tolerance: float = 0.0075
) -> Tensor:
    """Boundary F score (BF) of each class, averaged over images.

    Csurka, Larlus and Perronnin, *What is a good evaluation measure for semantic segmentation?*, BMVC 2013: of each
    class in each image, precision is the share of predicted contour pixels with a target contour pixel within
    ``tolerance`` of the image's diagonal (Euclidean, without rounding), recall that of target contour pixels with a
    predicted one, and the score is ``2 P R / (P + R)``. A contour pixel is one of the class that has a neighbour (of 4)
    of another class in the same labels; the frame of the image and ignored pixels make no contour. In an image where a
    class has a contour on one side only its score is 0; where it has none at all, the image does not count.

    Args:
        prediction: labels ``(N, H, W)`` of any integer dtype, or logits ``(N, C, H, W)``.
        target: labels ``(N, H, W)``.
        num_classes: C.
        ignore_index: target of pixels that take no part. Default 255; ``None``: none.
        tolerance: share of the image's diagonal. Default 0.0075, as in the paper.

    Returns:
        ``(C,)`` float64, NaN for a class without a contour in any image; :func:`mean_over_classes` averages.

    Raises:
        TypeError, ValueError: for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> target = torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> target[:, 16:48, 16:48] = 1
        >>> segops.metrics.boundary_f(target.roll(1, 2), target, 2, tolerance=0.0075)
        tensor([0.4844, 0.5000], dtype=torch.float64)
    """
    metric = BoundaryF(num_classes, ignore_index, tolerance=tolerance)
    metric.update(prediction, target)
    return metric.compute()


class BoundaryF(Accumulator):
    """Accumulates :func:`boundary_f`, whose arguments it takes: of each class the scores, and the images that count."""

    def __init__(self, num_classes: int, ignore_index: int | None = 255, *, tolerance: float = 0.0075):
        num_classes, ignore_index = checked(num_classes, ignore_index)
        super().__init__(num_classes, ignore_index, (2, num_classes), torch.float64)
        self.tolerance = _checks.positive("tolerance", tolerance)

    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Of each class the sum of its scores, and the number of images that have one."""
        both = shifted_labels(prediction, target, self.num_classes, self.ignore_index)
        reach = self.tolerance * diagonal(target)
        predicted, wanted = (torch.where(contours(labels), labels, 0) for labels in both)
        out = torch.zeros(2, self.num_classes, dtype=torch.float64, device=target.device)
        for p, t in zip(predicted, wanted, strict=True):
            for label in torch.stack([p, t]).unique().tolist():  # few of all classes
                if label > 0:
                    out[0, label - 1] += score(p == label, t == label, reach)
                    out[1, label - 1] += 1
        return out

    def compute(self) -> Tensor:
        """``(C,)`` float64, NaN for a class without a contour."""
        return self.sums[0] / self.sums[1]


def score(predicted: Tensor, wanted: Tensor, reach: float) -> Tensor:
    """F of two contours (H, W), not both of them empty."""
    precision, recall = share(predicted, wanted, reach), share(wanted, predicted, reach)
    return (2 * precision * recall / (precision + recall)).nan_to_num(0)


def share(contour: Tensor, other: Tensor, reach: float) -> Tensor:
    """The share of a contour that is within reach of another; NaN without any."""
    return (distance_transform(~other)[contour] <= reach).double().mean()
