"""Borders: mirrored ones for convolutions without padding, and cuts out of maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mirror_pad(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Continue maps beyond their edges as in mirrors, the edge itself not repeated.

    Args:
        x: ``(N, C, H, W)``.
        rows: how many to add above and below; any number, since the image is mirrored again where it ends.
        columns: the same, left and right.
    """
    for dim, (before, after) in ((-2, rows), (-1, columns)):
        x = x.index_select(dim, _mirrored(x.shape[dim], before, after, x.device))
    return x


def _mirrored(size: int, before: int, after: int, device: torch.device) -> Tensor:
    place = torch.arange(-before, size + after, device=device)
    if size == 1:
        return torch.zeros_like(place)
    place = place % (2 * (size - 1))
    return torch.minimum(place, 2 * (size - 1) - place)


def crop(x: Tensor, size: Sequence[int], top: int = 0, left: int | None = None) -> Tensor:
    """The part of a map of a size (rows, columns) from a row and a column on; the column is the row if not given."""
    height, width = size
    left = top if left is None else left
    return x[..., top : top + height, left : left + width]


def centre_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of a map; an odd rest is cut off below and to the right."""
    return crop(x, size, (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2)
