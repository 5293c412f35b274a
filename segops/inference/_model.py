"""What the helpers share: calling a model, and turning averages of logits or probabilities into logits again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks

Model = Callable[[Tensor], Any]
MERGES = ("logit", "probability")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """No gradients, and each module of the model in evaluation mode; afterwards all are as they were."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def image_batch(name: str, x: Any) -> Tensor:
    """Images (N, C, H, W), none of the dimensions empty."""
    x = _checks.tensor(name, x, 4, "(N, C, H, W)")
    if x.numel() == 0:
        raise ValueError(f"{name}: expected no empty dimension of (N, C, H, W), got shape {_checks.shape(x)}")
    return x


def logits_of(model: Model, image: Tensor, align_corners: bool = False) -> Tensor:
    """What a model says of images (N, C, H, W): float32 or float64 logits (N, K, H, W), resized where they are not."""
    if not callable(model):
        raise TypeError(f"model: expected a callable, got {type(model).__name__}")
    out = model(image)
    out = out["out"] if isinstance(out, Mapping) and "out" in out else out
    if not isinstance(out, Tensor):
        raise TypeError(f"model: expected it to return a tensor, or one under 'out', got {type(out).__name__}")
    if out.dim() != 4 or out.shape[0] != image.shape[0] or 0 in out.shape[1:]:
        raise ValueError(
            f"model: expected it to return shape ({image.shape[0]}, K, h, w) for {_checks.shape(image)}, "
            f"got {_checks.shape(out)}"
        )
    return resized(_checks.widened(_checks.floating("model", out)), image.shape[2:], align_corners)


def resized(x: Tensor, size: Any, align_corners: bool = False) -> Tensor:
    """Bilinearly to another size; the same size is left alone."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


def to_merge(logits: Tensor, merge: str) -> Tensor:
    """What is averaged: the logits, or softmax (of one class: sigmoid) of them."""
    if merge == "logit":
        return logits
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def from_merge(mean: Tensor, merge: str) -> Tensor:
    """Logits whose softmax (sigmoid) is the averaged probability; finite where that is 0 or 1."""
    if merge == "logit":
        return mean
    if mean.shape[1] == 1:
        return torch.logit(mean, eps=torch.finfo(mean.dtype).eps)
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


def labels_of(logits: Tensor) -> Tensor:
    """The most probable label (N, H, W); of one class, whether its logit is above 0. uint8 up to 256 classes."""
    labels = logits.squeeze(1) > 0 if logits.shape[1] == 1 else logits.argmax(1)
    return labels.to(torch.uint8 if logits.shape[1] <= 256 else torch.int64)
