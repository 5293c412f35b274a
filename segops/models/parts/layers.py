"""Layers of most heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Activation = Callable[[], nn.Module]


def conv_norm_act(
    in_channels: int, out_channels: int, kernel: int = 3, *, bias: bool = False, act: Activation = nn.ReLU
) -> nn.Sequential:
    """Convolution that keeps the size, batch normalisation, activation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), act())
