"""One step of PointRend's subdivision (Kirillov et al. 2020, section 3.1), and the whole loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .topk_uncertain_grid import topk_uncertain_grid


def subdivide(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, C, H, W) to the map (N, C, 2 H, 2 W); indices (N, k), centres (N, k, 2) of its uncertain cells."""
    if logits.shape[0] == 0:  # which interpolate refuses
        larger = logits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    else:
        larger = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    larger = larger.contiguous()  # it keeps channels_last
    return larger, *topk_uncertain_grid(larger, k)


def sample(x: Tensor, points: Tensor) -> Tensor:
    """x (N, C, H, W) at points (N, P, 2) in [0, 1]: (N, C, P)."""
    return F.grid_sample(x, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def subdivision(
    coarse: Tensor, features: Sequence[Tensor], point_head: Callable[..., Tensor], steps: int, num_points: int
) -> Tensor:
    """The loop: (N, C, H, W) to (N, C, H 2^steps, W 2^steps)."""
    logits = coarse
    for _ in range(steps):
        k = min(num_points, 4 * logits.shape[2] * logits.shape[3])
        logits, indices, points = subdivide(logits, k)
        fine = torch.cat([sample(x, points) for x in features], 1)
        refined = point_head(fine, sample(coarse, points))
        places = indices[:, None].expand_as(refined)
        logits = logits.flatten(2).scatter(2, places, refined).view_as(logits)
    return logits
