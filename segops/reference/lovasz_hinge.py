"""The Lovasz hinge loss in plain PyTorch (Yu and Blaschko 2015; Berman, Rannen Triki and Blaschko 2018)."""

from __future__ import annotations

from torch import Tensor

from .labels import check_labels
from .lovasz_grad import error_slopes, lovasz_extension


def problem(
    logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hinge errors before their ReLU (equation 7), foreground, valid and signs, a row for each set."""
    check_labels(target, 2, ignore_index)
    if not per_image:
        logits, target = logits.reshape(1, -1), target.reshape(1, -1)
    valid = target == target if ignore_index is None else target != ignore_index
    foreground = (target == 1) & valid
    signs = 2 * foreground.to(logits.dtype) - 1
    return 1 - logits * signs, foreground, valid, signs


def lovasz_hinge(logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None) -> Tensor:
    """logits, target (N, P) to the loss of each set: (N,) per image, else (1,)."""
    errors, foreground, valid, _ = problem(logits, target, per_image, ignore_index)
    return lovasz_extension(errors, foreground, valid)


def lovasz_hinge_backward(
    grad: Tensor, logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None
) -> Tensor:
    """Gradient of logits, (N, P); grad (S,)."""
    errors, foreground, valid, signs = problem(logits, target, per_image, ignore_index)
    return (-signs * error_slopes(errors, foreground, valid) * grad[:, None]).reshape(logits.shape)
