"""Layers of most heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ...nn import AtrousConv2d

Activation = Callable[[], nn.Module]
# Of in-place batch normalisation, which CCNet and OCNet were trained with.
LEAKY_RELU = partial(nn.LeakyReLU, 0.01)


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    dilation: int = 1,
    bias: bool = False,
    act: Activation = nn.ReLU,
) -> nn.Sequential:
    """Convolution that keeps the size, batch normalisation, activation."""
    padding = dilation * (kernel // 2)
    make = nn.Conv2d if dilation == 1 else AtrousConv2d
    conv = make(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), act())
