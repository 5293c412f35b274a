"""Bilinear interpolation as a transposed convolution, as Caffe's models have it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BilinearDeconv(nn.Module):
    """Enlarge maps by a factor with the filter of bilinear interpolation, of 2 x factor rows and columns.

    Beyond the edge of the map there are zeros, so that the outermost values fade.

    Args:
        channels: C; each is interpolated by itself.
        factor: f, the stride.
        padding: of the transposed convolution, what it cuts off each side. f / 2 gives f times the size.
        learn: the filters are parameters, which begin as bilinear, and not a buffer that stays out of the state dict.
        dense: learnt filters go from all channels to all, and begin with zeros between different ones.

    Shape:
        ``(N, C, H, W)`` to ``(N, C, f (H + 1) - 2 padding, f (W + 1) - 2 padding)``.
    """

    def __init__(self, channels: int, factor: int, *, padding: int = 0, learn: bool = False, dense: bool = False):
        super().__init__()
        self.channels, self.factor, self.padding = channels, factor, padding
        self.groups = 1 if learn and dense else channels
        slope = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor
        kernel = torch.outer(slope, slope)
        if not learn:
            self.register_buffer("weight", kernel.expand(1, 1, -1, -1), persistent=False)
            return
        weight = torch.zeros(channels, channels // self.groups, *kernel.shape)
        diagonal = torch.arange(channels)
        weight[diagonal, 0 if self.groups > 1 else diagonal] = kernel
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate."""
        weight = self.weight if isinstance(self.weight, nn.Parameter) else self.weight.expand(self.channels, -1, -1, -1)
        return F.conv_transpose2d(x, weight, stride=self.factor, padding=self.padding, groups=self.groups)

    def extra_repr(self) -> str:
        return f"{self.channels}, factor={self.factor}, padding={self.padding}"
