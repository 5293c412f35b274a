"""Whole photos through a trained model, and what comes of it: scores, the confusion matrix, the worst photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.augment import normalized
from ..data.datasets import SegmentationData, resized
from ..inference import crf_refine, predict
from ..metrics import ConfusionMatrix, class_accuracy, iou, mean_accuracy, mean_iou, pixel_accuracy
from ..models.model import resize
from .task import SegmentationTask

SCALES = (0.75, 1.0, 1.25)  # of test-time augmentation, with mirrors


@dataclass(frozen=True)
class Inference:
    """How a photo is segmented.

    Args:
        window: rows and columns of sliding windows. Default: the whole photo at once.
        scales: factors of its sides, averaged. Default 1.
        flip: average with the mirrored photo.
        crf: refine with the dense CRF, at the size of the photo.
        crf_options: of :func:`segops.dense_crf`.
    """

    window: Sequence[int] | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    crf: bool = False
    crf_options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        if self.window is not None:
            parts.append(f"windows of {self.window[0]} x {self.window[1]}")
        if self.flip or tuple(self.scales) != (1.0,):
            parts.append(f"scales {', '.join(map(str, self.scales))}{' and mirrors' if self.flip else ''}")
        return "; ".join(parts + ["dense CRF"] * self.crf) or "plain"


def segment(task: SegmentationTask, photo: np.ndarray, how: Inference) -> Tensor:
    """Logits float32 (K, H, W) of a photo uint8 (H, W, 3), at its own size."""
    native = torch.from_numpy(photo).permute(2, 0, 1).contiguous().to(task.device)
    image = native if task.recipe.size is None else resized(native, task.recipe.size)
    window = None if how.window is None else tuple(how.window)
    logits = predict(task.model, normalized(image[None]), window=window, scales=how.scales, flip=how.flip)
    logits = resize(logits.float(), native.shape[-2:])
    return (crf_refine(logits, native[None], **how.crf_options) if how.crf else logits)[0]


@dataclass
class Evaluation:
    """Counts over a split.

    Args:
        names: of the classes.
        matrix: (K, K), rows targets, columns predictions.
        photos: of each photo its name and mean IoU, over the classes that are in it or were predicted.
    """

    names: list[str]
    matrix: Tensor
    photos: list[tuple[str, float]]

    def summary(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        return {
            "mean_iou": float(mean_iou(self.matrix)),
            "mean_accuracy": float(mean_accuracy(self.matrix)),
            "pixel_accuracy": float(pixel_accuracy(self.matrix)),
            "classes": {
                name: {"iou": float(i), "accuracy": float(a), "pixels": int(pixels)}
                for name, i, a, pixels in zip(
                    self.names, iou(self.matrix), class_accuracy(self.matrix), self.matrix.sum(1), strict=True
                )
            },
            "photos": dict(self.photos),
            "confusion_matrix": self.matrix.tolist(),
        }

    def worst(self, count: int) -> list[int]:
        """Indices of the photos with the lowest mean IoU."""
        scores = np.array([score for _, score in self.photos])
        return np.argsort(np.nan_to_num(scores, nan=np.inf), kind="stable")[:count].tolist()


def evaluate(
    task: SegmentationTask,
    data: SegmentationData,
    how: Inference | None = None,
    progress: Callable[[Sequence[int]], Iterator[int]] = iter,
) -> Evaluation:
    """Segment all photos of a split and count, at the size of each mask.

    Args:
        task: a trained model.
        data: the split; its ``size`` and ``augment`` are not used.
        how: the photos are segmented. Default: at once, without more.
        progress: wraps the indices, to show a bar.

    Raises:
        ValueError: where the model has another number of classes than the data.
        DataError: for a file that is missing or wrong.
    """
    if len(task.names) != len(data.names):
        raise ValueError(f"data: expected the {len(task.names)} classes of the model, got {len(data.names)}")
    how = Inference() if how is None else how
    total, photos = ConfusionMatrix(len(data.names)), []
    for index in progress(range(len(data))):
        photo, labels = data.read(index)
        one = ConfusionMatrix(len(data.names))
        one.update(segment(task, photo, how)[None], torch.from_numpy(labels)[None].to(task.device))
        total.merge(one)
        photos.append((data.title(index), float(mean_iou(one.compute()))))
    return Evaluation(data.names, total.compute().cpu(), photos)
