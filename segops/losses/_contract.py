"""What all losses of this package share: their arguments, how ignored pixels are left out, how they reduce."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops.lovasz_softmax import REDUCTIONS

MODES = ("binary", "multiclass", "multilabel")
MEANS = ("valid", "weights", "all", "elements")


class Task(NamedTuple):
    """Logits and targets as every loss takes them, whatever came in."""

    mode: str
    x: Tensor  # (N, C, H, W), float32 or float64; 0 where ignored, so that no NaN comes from there
    label: Tensor  # (N, H, W) classes in int64 (multiclass), or (N, C, H, W) bool; 0 where ignored
    valid: Tensor  # bool, (N, 1, H, W) or (N, C, H, W)
    like: Tensor  # the logits that came in: the shape and dtype of what goes out

    def positive(self) -> Tensor:
        """Whether each class is there: bool (N, C, H, W), False where ignored."""
        return self.label if self.mode != "multiclass" else _one_hot(self.label, self.valid, self.x.shape[1])

    def probabilities(self) -> Tensor:
        """Softmax or sigmoid of the logits."""
        return self.x.softmax(1) if self.mode == "multiclass" else self.x.sigmoid()


def prepare(
    logits: Any, target: Any, ignore_index: int | None, mode: str | None = None, modes: tuple[str, ...] = MODES
) -> Task:
    """Check logits and targets, find the mode where None is given, and set ignored pixels aside."""
    form = "(N, C, H, W) or (N, H, W)"
    _checks.floating("logits", _checks.dense("logits", logits, form))
    target = _checks.labels("target", target, logits, "logits")
    if logits.dim() not in (3, 4) or 0 in logits.shape[1:]:
        raise ValueError(f"logits: expected {form}, no dimension but N empty, got shape {_checks.shape(logits)}")
    x = logits if logits.dim() == 4 else logits.unsqueeze(1)
    n, channels, height, width = x.shape
    per_class = target.dim() == 4
    if tuple(target.shape) != (tuple(x.shape) if per_class else (n, height, width)):
        raise ValueError(
            f"target: expected shape ({n}, {height}, {width}) or that of logits, {_checks.shape(logits)}, "
            f"got {_checks.shape(target)}"
        )
    mode = _mode(mode, channels, per_class, modes)
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    target = target if per_class else target.unsqueeze(1)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    of_classes = not per_class and mode != "binary"
    _check_range(target, valid, channels if of_classes else 2, ignore_index)
    x = _checks.widened(x)
    if ignore_index is not None:
        x, target = x.masked_fill(~valid, 0), target.masked_fill(~valid, 0)
    if mode == "multiclass":
        return Task(mode, x, target.squeeze(1), valid, logits)
    label = _one_hot(target.squeeze(1), valid, channels) if of_classes else _as_bool(target)
    return Task(mode, x, label, valid, logits)


def _mode(mode: str | None, channels: int, per_class: bool, modes: tuple[str, ...]) -> str:
    """The mode that was asked for, or the one that the shapes have."""
    if mode is None:
        mode = "binary" if channels == 1 else "multilabel" if per_class else "multiclass"
        if mode not in modes:
            raise ValueError(
                f"logits, target: expected shapes of the mode {' or '.join(modes)}, got those of the mode {mode}"
            )
    _checks.choice("mode", mode, modes)
    if channels != 1 if mode == "binary" else channels == 1:
        raise ValueError(f"logits: expected {'one class' if mode == 'binary' else 'C >= 2'}, got C = {channels}")
    if mode == "multiclass" and per_class:
        raise ValueError("target: expected labels (N, H, W) in the mode multiclass, got one map for each class")
    return mode


def _check_range(target: Tensor, valid: Tensor, classes: int, ignore_index: int | None) -> None:
    """One error for a label out of range. On other devices the host does not wait: indexing asserts there."""
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = valid & ((target < 0) | (target >= classes))
    if wrong.any():
        other = "" if ignore_index is None else f" or {ignore_index}"
        raise ValueError(f"target: expected labels from 0 to {classes - 1}{other}, got {int(target[wrong][0])}")


def _one_hot(label: Tensor, valid: Tensor, classes: int) -> Tensor:
    n, height, width = label.shape
    return valid.new_zeros(n, classes, height, width).scatter(1, label.unsqueeze(1), valid)


def _as_bool(target: Tensor) -> Tensor:
    """Labels 0 and 1 as bool, by an index: any other label is an assertion on CUDA."""
    return torch.arange(2, device=target.device)[target] > 0


def per_class(name: str, value: Tensor | None, task: Task) -> Tensor | None:
    """A vector (C,) in the dtype of the computation, without gradient."""
    return None if value is None else _checks.class_weight(value, task.x, "logits", name).to(task.x.dtype)


def pixel_weight(class_weight: Tensor | None, task: Task) -> Tensor | None:
    """The weight of each term: of its pixel's label (N, 1, H, W) in the multiclass mode, else of its channel."""
    weight = per_class("class_weight", class_weight, task)
    if weight is None:
        return None
    return weight[task.label].unsqueeze(1) if task.mode == "multiclass" else weight.view(1, -1, 1, 1)


def label_entropy(log_p: Tensor, task: Task) -> Tensor:
    """``-log p`` of each pixel's label (N, 1, H, W), by a gather: its gradient is deterministic on CUDA too."""
    return -log_p.gather(1, task.label.unsqueeze(1))


def reduce_pixels(
    loss: Tensor, weight: Tensor | None, kept: Tensor, task: Task, reduction: str, mean_over: str
) -> Tensor:
    """The terms (N, 1 or C, H, W), which hold their weight already, of what is kept; 0 where nothing is."""
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.choice("mean_over", mean_over, MEANS)
    kept = kept.expand_as(loss)
    loss = torch.where(kept, loss, 0)
    if reduction == "none":
        loss = loss.squeeze(1) if task.mode == "multiclass" else loss.view(task.like.shape)
    elif reduction == "sum" or mean_over in ("all", "elements"):
        terms = 1 if reduction == "sum" else (loss if mean_over == "all" else task.x).numel()
        loss = loss.sum() / max(terms, 1)
    else:
        counted = kept if weight is None or mean_over == "valid" else torch.where(kept, weight, 0)
        loss = quotient(loss.sum(), counted.sum().to(loss.dtype))
    return _checks.narrowed(loss, task.like)


def quotient(total: Tensor, divisor: Tensor) -> Tensor:
    """``total / divisor``; where the divisor is 0, and with it the total, 0 with a gradient of 0."""
    return total / torch.where(divisor != 0, divisor, 1)


def power(x: Tensor, exponent: float) -> Tensor:
    """``x ** exponent`` of x >= 0, with a gradient of 0 at 0, where that of exponents below 1 is infinite: what is
    right has nothing to learn. Rounding below 0 counts as 0."""
    if exponent == 1:
        return x
    if exponent > 1 or exponent == 0:
        return x.clamp(min=0) ** exponent
    return torch.where(x > 0, torch.where(x > 0, x, 1) ** exponent, x * 0)


class Loss(nn.Module):
    """A loss function with its options kept: their names, defaults and meaning are those of the function."""

    function: ClassVar[Callable[..., Tensor]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        options = list(inspect.signature(cls.function).parameters.values())[2:]
        cls.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        inspect.signature(type(self)).bind(**options)  # TypeError for an option that the function does not have
        self.options = {name: x for name, x in options.items() if not isinstance(x, Tensor)}
        for name, x in options.items():
            if isinstance(x, Tensor):  # moves with the module, is not part of its state
                self.register_buffer(name, x, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of ``logits`` (N, C, H, W) or (N, H, W) against ``target`` (N, H, W)."""
        return type(self).function(logits, target, **self.options, **dict(self.named_buffers()))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={x!r}" for name, x in self.options.items())
