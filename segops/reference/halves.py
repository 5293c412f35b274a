"""Half precision in the references: read and written, never summed."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_dtype(x: Tensor) -> torch.dtype:
    """That of sums: float64 stays, all else is summed in float32."""
    return x.dtype if x.dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """bfloat16 and float16 as float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
