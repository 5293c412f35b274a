"""U-Net: a contracting path, an expanding path, and the maps of the one joined to the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from .model import SegmentationModel
from .registry import Anchor, Card, register_model

CARD = Card(
    title="U-Net: Convolutional Networks for Biomedical Image Segmentation",
    authors="Ronneberger, Fischer, Brox",
    year=2015,
    venue="MICCAI",
    url="https://arxiv.org/abs/1505.04597",
    family="encoder-decoder",
    canonical="the paper's with padding=False: valid convolutions, no normalisation; by default the padded one with "
    "batch normalisation, as it is used today",
    uncertain="The dropout at the end of the contracting path has probability 0.5 as in the authors' Caffe network; "
    "the paper gives no number.",
    fidelity="structural",
    kernels=(),
    anchors=(
        Anchor(31_030_658, {"num_classes": 2, "in_channels": 1, "padding": False}, "the paper's layers"),
        Anchor(31_031_810, {"num_classes": 2, "padding": False}, "the paper's layers"),
        Anchor(31_037_698, {"num_classes": 2}, "milesial/Pytorch-UNet"),
    ),
    small={"num_classes": 5, "channels": 8},
)
LEVELS = 4


@register_model("unet", CARD)
class UNet(SegmentationModel):
    """Five levels, two 3 x 3 convolutions in each, on the way down and up again.

    Args:
        num_classes: K. Default 2, the paper's.
        channels: of the first level; each level below has twice as many. Default 64.
        in_channels: of the image. Default 3; the paper's has 1.
        padding: ``True`` (default): maps keep their size, convolutions have no bias and are normalised.
            ``False``, the paper's: nothing is padded but the image, by mirroring (the paper's overlap-tile), so that
            there are logits for all of it; no normalisation; dropout at the end of the contracting path.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, K, H, W)``; in training a dict with them under ``"out"``.

    Raises:
        TypeError, ValueError: for numbers that are no integers of at least 1; for images of other channels.

    Example:
        >>> import torch, segops
        >>> model = segops.models.UNet(5, 8).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(self, num_classes: int = 2, channels: int = 64, *, in_channels: int = 3, padding: bool = True):
        for name, number in (("num_classes", num_classes), ("channels", channels), ("in_channels", in_channels)):
            _checks.count(name, number, 1)
        super().__init__(Contracting(in_channels, channels, padding), Expanding(num_classes, channels, padding))
        self.in_channels, self.padding = in_channels, padding

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        if self.padding:
            return super().logits(image)
        size = image.shape[-2:]
        out = super().logits(mirrored(image, [valid_size(side) for side in size]))["out"]
        return {"out": centre(out, size)}


class Contracting(nn.Module):
    """Maps of each level, finest first."""

    def __init__(self, in_channels: int, channels: int, padding: bool):
        super().__init__()
        widths = [in_channels] + [channels * 2**level for level in range(LEVELS + 1)]
        self.levels = nn.ModuleList(double_conv(a, b, padding) for a, b in zip(widths, widths[1:], strict=False))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Identity() if padding else nn.Dropout(0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for level in self.levels:
            features.append(level(self.pool(features[-1]) if features else x))
        return [*features[:-2], *map(self.dropout, features[-2:])]


class Expanding(nn.Module):
    """Those maps to logits, from the coarsest up."""

    def __init__(self, num_classes: int, channels: int, padding: bool):
        super().__init__()
        widths = [channels * 2**level for level in range(LEVELS, -1, -1)]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.levels = nn.ModuleList(double_conv(a, b, padding) for a, b in pairs)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, level, skip in zip(self.ups, self.levels, reversed(skips), strict=True):
            x = level(torch.cat(fitted(skip, up(x)), 1))
        return self.classifier(x)


def double_conv(in_channels: int, out_channels: int, padding: bool) -> nn.Sequential:
    """Twice a 3 x 3 convolution and ReLU."""
    layers: list[nn.Module] = []
    for a in (in_channels, out_channels):
        layers.append(nn.Conv2d(a, out_channels, 3, padding=int(padding), bias=not padding))
        layers += [nn.BatchNorm2d(out_channels)] * padding + [nn.ReLU()]
    return nn.Sequential(*layers)


def fitted(skip: Tensor, x: Tensor) -> list[Tensor]:
    """The middle of the larger map of the contracting path; or, where pooling dropped a last row or column of a padded
    one, zeros there."""
    rows, columns = (have - want for have, want in zip(skip.shape[-2:], x.shape[-2:], strict=True))
    if rows <= 1 and columns <= 1:
        return [skip, F.pad(x, (0, columns, 0, rows))]
    return [centre(skip, x.shape[-2:]), x]


def centre(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of a map."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


def valid_size(side: int) -> int:
    """The smallest side of an image that gives at least ``side`` logits without padding: 572 for 388."""
    bottom = -(-(side + 124) // 16)  # the side before the lowest level's convolutions
    return 16 * bottom + 60


def mirrored(x: Tensor, size: Sequence[int]) -> Tensor:
    """An image continued on all four sides by its mirror images, as often as it takes."""
    for dim, want in zip((-2, -1), size, strict=True):
        have = x.shape[dim]
        place = torch.arange(want, device=x.device) - (want - have) // 2
        period = max(1, 2 * (have - 1))
        place = place.remainder(period)
        x = x.index_select(dim, torch.minimum(place, period - place).clamp(max=have - 1))
    return x
