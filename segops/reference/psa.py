"""Point-wise spatial attention: Zhao et al., 2018, section 3, with the masks of the published code."""

from __future__ import annotations

import torch
from torch import Tensor


def window_index(mode: str, mask_height: int, mask_width: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The entry of the mask (M_h M_w, H W), flattened, for each source and receiver (H W, H W); and which have one.

    Entry (i, j) at a position belongs to the one that lies (i - (M_h - 1) / 2, j - (M_w - 1) / 2) from it. Where the
    receivers collect, the position is the receiver's; where sources distribute, it is the source's.
    """
    y, x = torch.arange(height), torch.arange(width)

    def window(place: Tensor, size: int) -> Tensor:  # [source, receiver] along one axis
        away = place[:, None] - place[None, :]
        return (away if mode == "collect" else -away) + (size - 1) // 2

    i, j = window(y, mask_height)[:, None, :, None], window(x, mask_width)[None, :, None, :]
    inside = (i >= 0) & (i < mask_height) & (j >= 0) & (j < mask_width)
    position = torch.arange(height * width).view(height, width)
    own = position[None, None] if mode == "collect" else position[:, :, None, None]
    index = (i * mask_width + j) * (height * width) + own
    count = height * width
    return index.masked_fill(~inside, 0).view(count, count), inside.view(count, count)


def psa_mask(attention: Tensor, mode: str, mask_height: int, mask_width: int) -> Tensor:
    """attention (N, M_h M_w, H, W) to (N, H W, H, W): the weight of each source at each receiver, 0 outside."""
    n, _, height, width = attention.shape
    index, inside = window_index(mode, mask_height, mask_width, height, width)
    index, inside = index.to(attention.device), inside.to(attention.device)
    return torch.where(inside, attention.flatten(1)[:, index], 0).view(n, height * width, height, width)


def psa_mask_backward(grad: Tensor, mode: str, mask_height: int, mask_width: int) -> Tensor:
    """The gradient of the attention: every entry belongs to one source and receiver, or to none."""
    n, _, height, width = grad.shape
    index, inside = window_index(mode, mask_height, mask_width, height, width)
    out = grad.new_zeros(n, mask_height * mask_width * height * width)
    out[:, index[inside].to(grad.device)] = grad.flatten(2)[:, inside.to(grad.device)]
    return out.view(n, mask_height * mask_width, height, width)


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
    m = weights(attention, mode, mask_height, mask_width, compact)
    stats = value.new_empty(value.shape[0], 2, 0)
    if softmax:  # over the sources in both modes, the zeros outside of the window included
        largest = m.detach().amax(1, keepdim=True)
        stats = torch.cat([largest, torch.exp(m.detach() - largest).sum(1, keepdim=True)], 1)
        m = torch.softmax(m, 1)
    return (value.flatten(2) @ m).view(value.shape), stats


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
    n, _, height, width = value.shape
    m = weights(attention, mode, mask_height, mask_width, compact)
    grad_m = value.flatten(2).mT @ grad.flatten(2)
    if softmax:
        m = torch.exp(m - stats[:, :1]) / stats[:, 1:]
        grad_m = m * (grad_m - (out * grad).sum(1).flatten(1)[:, None])  # the sum over sources of m grad_m
    grad_value = (grad.flatten(2) @ m.mT).view(value.shape)
    if compact:
        return grad_value, (grad_m if mode == "collect" else grad_m.mT.contiguous()).view(attention.shape)
    return grad_value, psa_mask_backward(grad_m.view(n, height * width, height, width), mode, mask_height, mask_width)
