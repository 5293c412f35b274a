"""Rows of the confusion matrix: label maps as a trained network and its targets are, and its logits."""

from __future__ import annotations

import torch
from bench_types import Inputs, Provider, Workload
from torch import Tensor
from torch.nn import functional as F

import segops

IGNORE = 255


def segmented(n: int, classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Predictions and targets of regions: moved by some pixels, one in twenty another class, one in fifty ignored."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, classes, height // 64, width // 64, generator=g)
    regions = F.interpolate(coarse, scale_factor=16, mode="bicubic").argmax(1)
    target = regions.repeat_interleave(4, 1).repeat_interleave(4, 2)

    def one_in(count: int) -> Tensor:
        return torch.rand(target.shape, generator=g) < 1 / count

    prediction = target.roll((2, 3), (1, 2))
    prediction[one_in(20)] = 0
    target[one_in(50)] = IGNORE
    return prediction, target


def labels(*shape: int) -> Inputs:
    prediction, target = segmented(*shape)
    return {"prediction": prediction, "target": target, "num_classes": shape[1]}


def logits(*shape: int) -> Inputs:
    """Noise, whose argmax costs what any other does, against regions."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return {"prediction": x, "target": segmented(*shape)[1], "num_classes": shape[1]}


def bincount(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The recipe that most training code has."""
    if prediction.is_floating_point():
        prediction = prediction.argmax(1)
    valid = target != IGNORE
    place = target[valid] * num_classes + prediction[valid]
    return torch.bincount(place, minlength=num_classes**2).view(num_classes, num_classes)


def by_torchmetrics(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(prediction, target, num_classes, ignore_index=IGNORE, validate_args=False)


def read_once(inputs: Inputs) -> int:
    return sum(inputs[name].numel() * inputs[name].element_size() for name in ("prediction", "target"))


def row(name: str, make) -> Workload:
    return Workload("confusion_matrix", name, make, read_once, lambda inputs: bincount(**inputs))


WORKLOADS = (
    row("labels_8x512x1024_19_classes", lambda: labels(8, 19, 512, 1024)),
    row("labels_4x512x512_150_classes", lambda: labels(4, 150, 512, 512)),
    row("logits_2x19x512x1024", lambda: logits(2, 19, 512, 1024)),
)
PROVIDERS = (
    Provider("segops", "confusion_matrix", lambda x: lambda: segops.confusion_matrix(**x), tolerance=0),
    Provider("bincount", "confusion_matrix", lambda x: lambda: bincount(**x), tolerance=0),
    Provider("torchmetrics", "confusion_matrix", lambda x: lambda: by_torchmetrics(**x), "torchmetrics", tolerance=0),
)
