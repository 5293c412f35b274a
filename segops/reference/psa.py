"""Point-wise spatial attention: Zhao et al., 2018, section 3, with the masks of the published code."""

from __future__ import annotations

import torch
from torch import Tensor

from .halves import wide
from .psa_mask import psa_mask, psa_mask_backward


def weights(attention: Tensor, mode: str, mask_height: int, mask_width: int, compact: bool) -> Tensor:
    """The matrix of sources and receivers (N, H W, H W); compact attention is this matrix, or its transpose."""
    if not compact:
        return psa_mask(attention, mode, mask_height, mask_width).flatten(2)
    return attention.flatten(2) if mode == "collect" else attention.flatten(2).mT


def psa(
    value: Tensor, attention: Tensor, mode: str, mask_height: int, mask_width: int, compact: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    """value (N, C, H, W) to the same and, with softmax, for the backward pass, the largest logit of each receiver and
    the sum of the exponentials of the others' distance from it (N, 2, H W)."""
    dtype, value = value.dtype, wide(value)
    m = weights(wide(attention), mode, mask_height, mask_width, compact)
    stats = value.new_empty(value.shape[0], 2, 0)
    if softmax:  # over the sources in both modes, the zeros outside of the window included
        largest = m.detach().amax(1, keepdim=True)
        stats = torch.cat([largest, torch.exp(m.detach() - largest).sum(1, keepdim=True)], 1)
        m = torch.softmax(m, 1)
    return (value.flatten(2) @ m).view(value.shape).to(dtype), stats


def psa_backward(
    grad: Tensor,
    value: Tensor,
    attention: Tensor,
    out: Tensor,
    stats: Tensor,
    mode: str,
    mask_height: int,
    mask_width: int,
    compact: bool,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of value and attention."""
    dtype, (n, _, height, width) = value.dtype, value.shape
    grad, value, attention, out = map(wide, (grad, value, attention, out))
    m = weights(attention, mode, mask_height, mask_width, compact)
    grad_m = value.flatten(2).mT @ grad.flatten(2)
    if softmax:
        m = torch.exp(m - stats[:, :1]) / stats[:, 1:]
        grad_m = m * (grad_m - (out * grad).sum(1).flatten(1)[:, None])  # the sum over sources of m grad_m
    grad_value = (grad.flatten(2) @ m.mT).view(value.shape).to(dtype)
    grad_m = grad_m.to(dtype)
    if compact:
        return grad_value, (grad_m if mode == "collect" else grad_m.mT.contiguous()).view(attention.shape)
    return grad_value, psa_mask_backward(grad_m.view(n, height * width, height, width), mode, mask_height, mask_width)
