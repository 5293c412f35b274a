"""The dense CRF of an image: two Gaussian kernels, one of position, one of position and colour (2011, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_crf_features(image: Tensor, sigma_xy: Sequence[float], sigma_color: Sequence[float]) -> Tensor:
    """image (N, C, H, W) to features (N, 2 + C, H * W): x, y and the channels, each over its standard deviation."""
    n, _, h, w = image.shape
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    y, x = torch.meshgrid(
        torch.arange(h, dtype=dtype, device=image.device),
        torch.arange(w, dtype=dtype, device=image.device),
        indexing="ij",
    )
    position = torch.stack([x / sigma_xy[0], y / sigma_xy[1]]).expand(n, 2, h, w)
    color = image.to(dtype) / torch.tensor(sigma_color, dtype=dtype, device=image.device)[:, None, None]
    return torch.cat([position, color], 1).flatten(2)
