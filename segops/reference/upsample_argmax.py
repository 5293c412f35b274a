"""Bilinear up-sampling and the largest class in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def upsample_argmax(input: Tensor, height: int, width: int, align_corners: bool, narrow: bool) -> Tensor:
    """input (N, C, h, w) to labels (N, height, width), uint8 if ``narrow``, else int64."""
    full = interpolate(input, (height, width), mode="bilinear", align_corners=align_corners)
    return full.argmax(1).to(torch.uint8 if narrow else torch.int64)
