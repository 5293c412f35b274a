"""Metrics of segmentation: pure functions of confusion matrices or labels, and objects that accumulate them."""

from .boundary_f import BoundaryF, boundary_f
from .boundary_iou import BoundaryIoU, boundary_iou
from .confusion_matrix import ConfusionMatrix
from .overlap import (
    class_accuracy,
    dice,
    frequency_weighted_iou,
    iou,
    mean_accuracy,
    mean_dice,
    mean_iou,
    mean_over_classes,
    pixel_accuracy,
)
from .trimap_iou import TrimapIoU, trimap_iou

__all__ = [
    "BoundaryF",
    "BoundaryIoU",
    "ConfusionMatrix",
    "TrimapIoU",
    "boundary_f",
    "boundary_iou",
    "class_accuracy",
    "dice",
    "frequency_weighted_iou",
    "iou",
    "mean_accuracy",
    "mean_dice",
    "mean_iou",
    "mean_over_classes",
    "pixel_accuracy",
    "trimap_iou",
]
