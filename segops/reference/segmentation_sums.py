"""What cross entropy, Dice and focal losses sum up over the pixels of each image, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .labels import check_labels


def _pixels(input: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """log p (N, C, P), of zeros where ignored; each pixel's class, one-hot (N, C, P); whether it counts (N, 1, P)."""
    check_labels(target, input.shape[1], ignore_index)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    valid = valid[:, None]
    own = (target[:, None] == torch.arange(input.shape[1], device=input.device)[:, None]) & valid
    return torch.where(valid, input, 0).log_softmax(1), own, valid


def segmentation_sums(input: Tensor, target: Tensor, ignore_index: int | None, gamma: float) -> Tensor:
    """input (N, C, P), target (N, P) to (N, 6, C): overlap, predicted, pixels, cross entropy, focal, uniform."""
    log_p, own, valid = _pixels(input, target, ignore_index)
    p, others = log_p.exp(), -log_p.expm1()  # p, and 1 - p without loss of digits
    of_own = (p, torch.ones_like(p), -log_p, -log_p * others**gamma)  # the last: Lin et al., equation 4
    overlap, pixels, cross_entropy, focal = (torch.where(own, x, 0).sum(2) for x in of_own)
    predicted, uniform = (torch.where(valid, x, 0).sum(2) for x in (p, -log_p))
    return torch.stack([overlap, predicted, pixels, cross_entropy, focal, uniform], 1)


def segmentation_sums_backward(
    grad: Tensor, input: Tensor, target: Tensor, ignore_index: int | None, gamma: float
) -> Tensor:
    """Gradient of input, (N, C, P); grad (N, 6, C)."""
    log_p, own, valid = _pixels(input, target, ignore_index)
    overlap, predicted, _, cross_entropy, focal, uniform = grad[..., None].unbind(1)
    p, others = log_p.exp(), -log_p.expm1()
    raised = others**gamma
    inner = gamma * raised / others * p * log_p
    focal_slope = torch.where((others > 0) & (p > 0), inner, 0) - raised  # where one is 0, the limit
    by_log_p = p * predicted - uniform + torch.where(own, p * overlap - cross_entropy + focal * focal_slope, 0)
    return torch.where(valid, by_log_p - p * by_log_p.sum(1, keepdim=True), 0)
