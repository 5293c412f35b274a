"""Layers of most heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ...nn import AtrousConv2d

Activation = Callable[[], nn.Module]
# InPlaceABN's activation, which CCNet, OCNet and ANN have wherever their papers say ReLU.
LEAKY_RELU: Activation = partial(nn.LeakyReLU, 0.01)


def conv(in_channels: int, out_channels: int, kernel: int = 3, *, dilation: int = 1, **options: object) -> nn.Conv2d:
    """A convolution that keeps the size of its input (with stride 1), on segops.atrous_conv2d where it has holes."""
    make = nn.Conv2d if dilation == 1 else AtrousConv2d
    padding = dilation * (kernel // 2)
    return make(in_channels, out_channels, kernel, padding=padding, dilation=dilation, **options)  # type: ignore[arg-type]


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = False,
    act: Activation | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    layers: list[nn.Module] = [
        conv(in_channels, out_channels, kernel, stride=stride, dilation=dilation, bias=bias),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))
