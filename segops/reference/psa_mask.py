"""The masks of point-wise spatial attention, Zhao et al., 2018, as a matrix: the index rule of the published code."""

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
