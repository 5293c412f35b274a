"""Pyramid pooling of PSPNet, which later heads have too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import pyramid_pool
from ..model import resize
from .layers import Activation, conv_norm_act


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes, each with a 1 x 1 convolution, resized to the map and concatenated to it.

    The averages of all grids are one call of :func:`segops.pyramid_pool`.

    Args:
        in_channels: C.
        channels: D, of each grid. Default C / number of grids.
        bins: n for the n x n grids.
        align_corners: how the grids are interpolated.
        act: the activation. Default ReLU.

    Shape:
        ``(N, C, H, W)`` to ``(N, C + D * len(bins), H, W)``: the map, then the grids in order. Training needs N >= 2
        where there is a grid of one bin, whose layer normalises N values.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int | None = None,
        bins: Sequence[int] = (1, 2, 3, 6),
        *,
        align_corners: bool = True,
        act: Activation = nn.ReLU,
    ):
        super().__init__()
        inner = in_channels // len(bins) if channels is None else channels
        self.bins, self.align_corners = tuple(bins), align_corners
        self.layers = nn.ModuleList(conv_norm_act(in_channels, inner, 1, act=act) for _ in bins)
        self.out_channels = in_channels + inner * len(self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """The map with its context."""
        grids = pyramid_pool(x, self.bins).split([n * n for n in self.bins], 2)
        context = [
            resize(layer(grid.unflatten(2, (n, n))), x.shape[2:], self.align_corners)
            for layer, grid, n in zip(self.layers, grids, self.bins, strict=True)
        ]
        return torch.cat([x, *context], 1)
