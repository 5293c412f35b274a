"""The confusion matrix in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def check_labels(name: str, labels: Tensor, num_classes: int, spare: str = "") -> None:
    """Labels 0 to C - 1; ``spare`` says which other one was taken out before."""
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise ValueError(f"{name}: expected labels from 0 to {num_classes - 1}{spare}, got {int(labels[wrong][0])}")


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    """prediction (N, P) or logits (N, C, P), target (N, P) to the counts (C, C): row target, column prediction."""
    if prediction.is_floating_point():
        prediction = prediction.argmax(1)
    prediction, target = prediction.long(), target.long()
    spare = ""
    if ignore_index is not None:
        valid = target != ignore_index
        prediction, target = prediction[valid], target[valid]
        spare = f" or ignore_index = {ignore_index}"
    check_labels("target", target, num_classes, spare)
    check_labels("prediction", prediction, num_classes)
    place = (target * num_classes + prediction).flatten()
    return torch.bincount(place, minlength=num_classes**2).view(num_classes, num_classes)
