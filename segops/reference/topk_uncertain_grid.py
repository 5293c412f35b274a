"""The most uncertain cells of a map of logits, after PointRend (Kirillov et al. 2020, section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def margin(logits: Tensor) -> Tensor:
    """logits (N, C, ...) to (N, ...): top1 - top2, or |logit| for one channel; the smaller, the more uncertain.

    NaN, or infinities that cancel, give no margin: such a place counts as the least uncertain.
    """
    if logits.shape[1] == 1:
        apart = logits[:, 0].abs()
    else:
        largest = logits.topk(2, 1).values  # a NaN is the largest of all
        apart = largest[:, 0] - largest[:, 1]
    return apart.masked_fill(apart.isnan(), math.inf)


def most_uncertain(margins: Tensor, k: int) -> Tensor:
    """margins (N, P) to the places of the k smallest, (N, k), ascending, ties by the lower place."""
    return margins.sort(dim=1, stable=True).indices[:, :k].contiguous()


def cell_centres(indices: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Flat indices (N, k) to (x, y) in units of width and height, (N, k, 2)."""
    x, y = indices % width, indices.div(width, rounding_mode="floor")
    return torch.stack([(x.to(dtype) + 0.5) / width, (y.to(dtype) + 0.5) / height], -1)


def topk_uncertain_grid(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """logits (N, C, H, W) to flat indices (N, k) and centres (N, k, 2) of the k most uncertain cells."""
    indices = most_uncertain(margin(logits).flatten(1), k)
    return indices, cell_centres(indices, logits.shape[2], logits.shape[3], logits.dtype)
