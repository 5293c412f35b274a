"""Bilinear up-sampling and cross entropy in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .labels import check_labels


def _log_softmax(input: Tensor, target: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Of the logits at the size of the target, and the logarithm of the softmax's denominator."""
    x = interpolate(input, target.shape[1:], mode="bilinear", align_corners=align_corners)
    return x.log_softmax(1), x.logsumexp(1)


def _weights(input: Tensor, target: Tensor, class_weight: Tensor | None, ignore_index: int | None, smoothing: float):
    """What -log p of each class counts at each pixel (N, C, H, W), and which pixels count (N, H, W)."""
    channels = input.shape[1]
    check_labels(target, channels, ignore_index)
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    own = target[:, None] == torch.arange(channels, device=input.device)[:, None, None]
    weight = input.new_ones(channels) if class_weight is None else class_weight
    spread = (1 - smoothing) * own.to(input.dtype) + smoothing / channels
    return spread * weight[:, None, None], valid


def upsample_cross_entropy(
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    align_corners: bool,
    ignore_index: int | None,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """input (N, C, h, w), target (N, H, W) to the loss of each pixel and its log-sum-exp, both 0 where ignored."""
    log_p, lse = _log_softmax(input, target, align_corners)
    weights, valid = _weights(input, target, class_weight, ignore_index, smoothing)
    loss = -torch.where(weights != 0, weights * log_p, 0).sum(1)
    return torch.where(valid, loss, 0), torch.where(valid, lse, 0).detach()  # a gradient comes through the losses alone


def upsample_cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    class_weight: Tensor | None,
    align_corners: bool,
    ignore_index: int | None,
    smoothing: float,
) -> Tensor:
    """Gradient of input, (N, C, h, w); grad and lse (N, H, W)."""
    weights, valid = _weights(input, target, class_weight, ignore_index, smoothing)
    size = target.shape[1:]
    full = interpolate(input, size, mode="bilinear", align_corners=align_corners)
    slope = (full - lse[:, None]).exp() * weights.sum(1, keepdim=True) - weights
    slope = torch.where(valid[:, None], grad[:, None] * slope, 0)
    return torch.ops.aten.upsample_bilinear2d_backward(slope, size, input.shape, align_corners)
