"""Adaptive average pooling to several sizes: the pyramid pooling of Zhao et al., 2017, without its convolutions.

Bin i of n along L positions is [floor(i L / n), ceil((i + 1) L / n)): bins overlap where n does not divide L.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def averages(bins: int, length: int, like: Tensor) -> Tensor:
    """(bins, length): row i has 1 over the length of its bin inside of it."""
    i, at = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    start, end = i * length // bins, ((i + 1) * length + bins - 1) // bins
    return ((at >= start) & (at < end)).to(like.dtype) / (end - start)


def pyramid_pool(x: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """x (N, C, H, W) to (N, C, S): the levels one after the other, each row-major."""
    height, width = x.shape[2:]
    return torch.cat(
        [
            (averages(r, height, x) @ x @ averages(c, width, x).mT).flatten(2)
            for r, c in zip(rows, columns, strict=True)
        ],
        2,
    )


def pyramid_pool_backward(grad: Tensor, height: int, width: int, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """grad (N, C, S) to (N, C, height, width)."""
    levels = grad.split([r * c for r, c in zip(rows, columns, strict=True)], 2)
    out = grad.new_zeros(*grad.shape[:2], height, width)
    for level, r, c in zip(levels, rows, columns, strict=True):
        out += averages(r, height, grad).mT @ level.unflatten(2, (r, c)) @ averages(c, width, grad)
    return out
