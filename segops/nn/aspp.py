"""The head of DeepLab v3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import aspp


def _layers(conv: nn.Module, channels: int, *before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, conv, nn.BatchNorm2d(channels), nn.ReLU())


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of Chen et al., *Rethinking Atrous Convolution for Semantic Image Segmentation*,
    2017 (DeepLab v3): a 1 x 1 convolution, 3 x 3 convolutions at several rates and the mean of the image, each with
    batch normalisation and ReLU; concatenated, and a 1 x 1 convolution over all.

    The convolutions are one call of :func:`segops.aspp`. Parameters have the names of torchvision's
    ``torchvision.models.segmentation.deeplabv3.ASPP``, whose ``state_dict`` loads.

    Args:
        in_channels: C.
        rates: of the 3 x 3 convolutions, each at least 1; (12, 24, 36) at stride 8, (6, 12, 18) at stride 16.
        out_channels: K of each branch and of the output. Default 256.
        dropout: after the last convolution. Default 0.5, torchvision's; the paper has none.

    Shape:
        ``(N, C, H, W)`` to ``(N, K, H, W)``. Training needs N >= 2: the branch of the mean normalises N values.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> head = segops.nn.ASPP(64, (6, 12, 18), out_channels=16)
        >>> head(torch.randn(2, 64, 17, 17)).shape
        torch.Size([2, 16, 17, 17])
    """

    def __init__(self, in_channels: int, rates: Sequence[int], out_channels: int = 256, *, dropout: float = 0.5):
        super().__init__()
        for name, number in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            *((f"rates[{i}]", rate) for i, rate in enumerate(rates)),
        ):
            if _checks.count(name, number) == 0:
                raise ValueError(f"{name}: expected at least 1, got 0")
        self.rates = list(rates)
        convolutions = [nn.Conv2d(in_channels, out_channels, 1, bias=False)]
        for rate in self.rates:
            convolutions.append(nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False))
        pooled = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.convs = nn.ModuleList(
            [*(_layers(c, out_channels) for c in convolutions), _layers(pooled, out_channels, nn.AdaptiveAvgPool2d(1))]
        )
        self.project = nn.Sequential(
            nn.Conv2d(len(self.convs) * out_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to (N, K, H, W)."""
        branches: list[Any] = list(self.convs)
        pooling = branches.pop()
        outs = aspp(x, [branch[0].weight for branch in branches], None, [1, *self.rates])
        outs = tuple(branch[2](branch[1](out)) for branch, out in zip(branches, outs, strict=True))
        mean = nn.functional.interpolate(pooling(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*outs, mean], 1))

    def extra_repr(self) -> str:
        return f"rates={self.rates}"
