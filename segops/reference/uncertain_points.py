"""PointRend's choice of points in training (Kirillov et al. 2020, section 3.2), given its random draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .topk_uncertain_grid import margin, most_uncertain


def uncertain_points(logits: Tensor, candidates: Tensor, others: Tensor, important: int) -> Tensor:
    """The ``important`` most uncertain candidates (N, M, 2), then the others (N, R, 2): (N, important + R, 2).

    Points are (x, y) in [0, 1]; the uncertainty is that of the logits (N, C, H, W) sampled there.
    """
    sampled = F.grid_sample(logits, 2 * candidates[:, :, None] - 1, align_corners=False)[..., 0]
    chosen = most_uncertain(margin(sampled), important)
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), others], 1)
