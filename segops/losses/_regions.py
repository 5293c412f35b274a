"""What losses of overlapping regions share: soft areas of each class, and how the classes' losses are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..ops.lovasz_softmax import REDUCTIONS, _class_indices, _reduced
from ._contract import Task, per_class, power, quotient

ABSENT = ("formula", "zero")
CLASS_MEANS = ("classes", "weights")


class Areas(NamedTuple):
    """Soft areas of each class in each set (S, C); a set is an image or the batch."""

    overlap: Tensor  # sum of p t
    predicted: Tensor  # sum of p, or of its square
    actual: Tensor  # sum of t
    seen: Tensor  # bool: a pixel of the set counts


def areas(task: Task, per_image: bool, squared: bool = False, micro: bool = False) -> Areas:
    """The areas over valid pixels. ``micro``: all classes as one."""
    p, t = torch.where(task.valid, task.probabilities(), 0), task.positive()
    dims = [d for d, summed in enumerate((not per_image, micro, True, True)) if summed]

    def total(x: Tensor) -> Tensor:
        out = x.sum(dims)
        return out.view(task.x.shape[0] if per_image else 1, 1 if micro else task.x.shape[1])

    seen = total(task.valid.expand_as(t)) > 0
    return Areas(total(torch.where(t, p, 0)), total(p * p if squared else p), total(t).to(p.dtype), seen)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A score; nothing predicted where nothing is, 0 / 0, is right."""
    empty = denominator == 0
    return torch.where(empty, 1, numerator / torch.where(empty, 1, denominator))


def smoothing(smooth: float | Sequence[float]) -> tuple[float, float]:
    """What is added to the numerator and to the denominator."""
    both = list(smooth) if isinstance(smooth, Sequence) and not isinstance(smooth, str) else [smooth, smooth]
    if len(both) != 2:
        raise ValueError(f"smooth: expected one number or two, got {len(both)}")
    if any(_checks.finite("smooth", s) < 0 for s in both):
        raise ValueError(f"smooth: expected numbers >= 0, got {smooth}")
    return float(both[0]), float(both[1])


def reduce_classes(
    loss: Tensor,
    found: Areas,
    task: Task,
    *,
    classes: str | Sequence[int],
    absent: str,
    class_weight: Tensor | None,
    per_image: bool,
    reduction: str,
    mean_over: str,
    exponent: float = 1.0,
) -> Tensor:
    """Losses (S, C) of classes in sets, reduced; a class without a valid pixel in the set costs nothing. The exponent
    is that of a set's mean."""
    _checks.choice("absent", absent, ABSENT)
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.choice("mean_over", mean_over, CLASS_MEANS)
    present = found.actual > 0
    loss = torch.where(found.seen & present if absent == "zero" else found.seen, loss, 0)
    weight = per_class("class_weight", class_weight, task)
    counted = present if isinstance(classes, str) and classes == "present" else torch.ones_like(present)
    if loss.shape[1] == task.x.shape[1]:
        chosen = _class_indices(classes, task.x.shape[1])
        loss, counted = loss[:, chosen], counted[:, chosen]
        weight = None if weight is None else weight[chosen]
    share = counted.to(loss.dtype)
    loss = loss * (share if weight is None else share * weight)
    if reduction == "none":
        return _checks.narrowed(loss if per_image else loss.squeeze(0), task.like)
    loss = loss.sum(1)
    if reduction == "mean":
        divisor = (share if weight is None or mean_over == "classes" else share * weight).sum(1)
        loss = power(quotient(loss, divisor), exponent)
    return _checks.narrowed(_reduced(loss, per_image, reduction), task.like)
