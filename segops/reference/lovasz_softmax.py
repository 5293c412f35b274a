"""The Lovasz-softmax loss in plain PyTorch (Berman, Rannen Triki and Blaschko 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .labels import check_labels
from .lovasz_grad import error_slopes, lovasz_extension


def probabilities(input: Tensor, from_logits: bool) -> Tensor:
    """(N, C, P); a single channel is the probability of class 1, against class 0."""
    if not from_logits:
        return input
    return input.sigmoid() if input.shape[1] == 1 else input.softmax(1)


def rows(x: Tensor, per_image: bool) -> Tensor:
    """(N, K, P) to a row for each set and class: (N K, P), or (K, N P) where the batch is one set."""
    return x.flatten(0, 1) if per_image else x.transpose(0, 1).flatten(1)


def problem(
    p: Tensor, target: Tensor, classes: Sequence[int], per_image: bool, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """errors (equation 5), foreground and valid, as rows; p (N, C, P)."""
    check_labels(target, max(p.shape[1], 2), ignore_index)  # 0 and 1 for a single channel
    channels = torch.tensor(classes, dtype=torch.long, device=p.device)
    label = target[:, None].expand(-1, len(classes), -1)
    valid = torch.ones_like(label, dtype=torch.bool) if ignore_index is None else label != ignore_index
    foreground = (label == (channels + (p.shape[1] == 1))[:, None]) & valid
    errors = (foreground.to(p.dtype) - p[:, channels]).abs()
    return rows(errors, per_image), rows(foreground, per_image), rows(valid, per_image)


def factors(
    foreground: Tensor, class_weight: Tensor | None, classes: Sequence[int], present: bool, dtype: torch.dtype
) -> Tensor:
    """What each class counts in its set, (S, K): its weight over the number of classes that are averaged."""
    counted = (foreground.any(-1) | (not present)).unflatten(0, (-1, len(classes))).to(dtype)
    weight = 1 if class_weight is None else class_weight[list(classes)]
    return weight * counted / counted.sum(1, keepdim=True).clamp(min=1)


def lovasz_softmax(
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    classes: Sequence[int],
    present: bool,
    per_image: bool,
    ignore_index: int | None,
    from_logits: bool,
) -> Tensor:
    """input (N, C, P), target (N, P) to the loss of each set: (N,) per image, else (1,)."""
    p = probabilities(input, from_logits)
    errors, foreground, valid = problem(p, target, classes, per_image, ignore_index)
    losses = lovasz_extension(errors, foreground, valid).unflatten(0, (-1, len(classes)))
    return (losses * factors(foreground, class_weight, classes, present, p.dtype)).sum(1)


def lovasz_softmax_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    classes: Sequence[int],
    present: bool,
    per_image: bool,
    ignore_index: int | None,
    from_logits: bool,
) -> Tensor:
    """Gradient of input, (N, C, P); grad (S,)."""
    p = probabilities(input, from_logits)
    errors, foreground, valid = problem(p, target, classes, per_image, ignore_index)
    factor = (grad[:, None] * factors(foreground, class_weight, classes, present, p.dtype)).flatten()
    slopes = error_slopes(errors, foreground, valid) * factor[:, None]
    slopes = torch.where(foreground, -slopes, slopes)
    batch, points = target.shape
    count = len(classes)
    slopes = slopes.view(batch, count, points) if per_image else slopes.view(count, batch, points).transpose(0, 1)
    by_probability = torch.zeros_like(p).index_copy(1, torch.tensor(classes, device=p.device), slopes)
    if not from_logits:
        return by_probability
    if p.shape[1] == 1:
        return by_probability * p * (1 - p)
    return p * (by_probability - (p * by_probability).sum(1, keepdim=True))
