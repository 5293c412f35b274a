"""Object context of OCNet: self-attention whose queries are its keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import nonlocal_attention
from ..model import resize
from .layers import LEAKY_RELU, conv_norm_act


class ObjectContext(nn.Module):
    """What each pixel gathers from those that look alike; nothing at first, since the last convolution starts at zero.

    Args:
        channels: C of input and output; queries, which are the keys too, have half as many.
        value_channels: of values.
        pool: attend on the map max-pooled by 2, and enlarge what comes out.
        cells: attend within each cell of a grid of so many rows and columns.

    Shape:
        ``(N, C, H, W)`` to the same.
    """

    def __init__(self, channels: int, value_channels: int, *, pool: bool = False, cells: int = 1):
        super().__init__()
        self.key = conv_norm_act(channels, channels // 2, 1, bias=True, act=LEAKY_RELU)
        self.value = nn.Conv2d(channels, value_channels, 1)
        self.project = nn.Conv2d(value_channels, channels, 1)
        self.pool, self.cells = pool, cells
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = F.max_pool2d(x, 2, ceil_mode=min(size) < 2) if self.pool else x
        context = self.project(self.attend(self.key(x), self.value(x)))
        return resize(context, size, True) if self.pool else context

    def attend(self, key: Tensor, value: Tensor) -> Tensor:
        """Within each cell."""
        rows, columns = (split(side, self.cells) for side in key.shape[-2:])
        scale = key.shape[1] ** -0.5
        keys, values = (
            [row.split(columns, 3) for row in x.split(rows, 2)] for x in (key.contiguous(), value.contiguous())
        )
        return torch.cat(
            [
                torch.cat([nonlocal_attention(k, k, v, scale=scale) for k, v in zip(ks, vs, strict=True)], 3)
                for ks, vs in zip(keys, values, strict=True)
            ],
            2,
        )


def split(side: int, cells: int) -> list[int]:
    """The sides of cells: all the same, the last with what is left over."""
    step = side // cells
    return [step] * (cells - 1) + [side - step * (cells - 1)] if step else [side]
