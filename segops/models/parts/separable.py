"""Separable convolutions of DeepLab v3+ and its followers."""

from __future__ import annotations

from torch import nn

from ...nn import AtrousConv2d
from .layers import Activation, conv_norm_act


def separable_conv_norm_act(
    in_channels: int, out_channels: int, kernel: int = 3, *, dilation: int = 1, act: Activation = nn.ReLU
) -> nn.Sequential:
    """Depthwise convolution, then a 1 x 1 convolution, each with batch normalisation and activation."""
    padding = dilation * (kernel // 2)
    make = nn.Conv2d if dilation == 1 else AtrousConv2d
    depthwise = make(
        in_channels, in_channels, kernel, padding=padding, dilation=dilation, groups=in_channels, bias=False
    )
    pointwise = conv_norm_act(in_channels, out_channels, 1, act=act)
    return nn.Sequential(depthwise, nn.BatchNorm2d(in_channels), act(), *pointwise)
