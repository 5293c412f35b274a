"""The exact Euclidean distance transform in plain PyTorch, one dimension after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def steps_within_columns(labels: Tensor) -> Tensor:
    """labels (N, H, W) to the rows from each pixel to the nearest one of another label in its column, or inf."""
    height = labels.shape[1]
    rows = torch.arange(height, dtype=torch.float64, device=labels.device)[:, None]
    differs = labels[:, 1:] != labels[:, :-1]  # from the pixel above
    none = torch.full_like(labels[:, :1], -math.inf, dtype=torch.float64)
    last = torch.cat([none, torch.where(differs, rows[:-1], -math.inf)], 1).cummax(1).values
    first = torch.cat([torch.where(differs, rows[1:], math.inf), -none], 1).flip(1).cummin(1).values.flip(1)
    return torch.minimum(rows - last, first - rows)


def distance_transform(labels: Tensor) -> Tensor:
    """labels (N, H, W) to the distance of each pixel to the nearest of another label, float32; 0 where the label is 0.

    Squared distances are integers, exact in float64: the least over columns x' of (x - x')^2 + g(x')^2, where g counts
    the rows to another label in column x' (Meijster, Roerdink and Hesselink 2000), or is 0 if that is at hand.
    """
    if labels.numel() == 0:
        return labels.new_empty(labels.shape, dtype=torch.float32)
    squares = steps_within_columns(labels) ** 2
    columns = torch.arange(labels.shape[2], dtype=torch.float64, device=labels.device)
    least = squares
    for i, column in enumerate(columns):
        there = torch.where(labels[..., i : i + 1] == labels, squares[..., i : i + 1], 0)
        least = torch.minimum(least, (columns - column) ** 2 + there)
    return torch.where(labels == 0, 0, least).sqrt().float()
