"""U-Net: a path down, a path up, and at each level the one joined to the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from .model import SegmentationModel
from .parts.padding import centre_crop, crop, mirror_pad
from .registry import Anchor, Card, register_model

CARD = Card(
    title="U-Net: Convolutional Networks for Biomedical Image Segmentation",
    authors="Ronneberger, Fischer, Brox",
    year=2015,
    venue="MICCAI",
    url="https://arxiv.org/abs/1505.04597",
    family="encoder-decoder",
    canonical="the paper's, without padding and normalisation; what is mostly used by padded=True",
    uncertain="The paper puts dropout at the end of the contracting path; here it is after the last two levels, with "
    "probability one half. The paper's images have one channel; the default here is three.",
    fidelity="structural",
    kernels=(),
    anchors=(
        Anchor(31_030_658, {"in_channels": 1, "num_classes": 2}, "paper, every layer"),
        Anchor(31_031_810, {"num_classes": 2}, "paper, three channels"),
        Anchor(31_037_698, {"num_classes": 2, "padded": True}, "common PyTorch build, transposed convolutions"),
        Anchor(17_263_042, {"num_classes": 2, "padded": True, "bilinear": True}, "common PyTorch build, bilinear"),
    ),
    small={"num_classes": 5, "padded": True, "channels": (8, 16, 16, 32, 32)},
)
CHANNELS = (64, 128, 256, 512, 1024)


def _twice(in_channels: int, inner: int, out_channels: int, padded: bool) -> nn.Sequential:
    """Two 3 x 3 convolutions: without padding and with biases, or with padding and batch normalisation."""
    layers: list[nn.Module] = []
    for before, after in ((in_channels, inner), (inner, out_channels)):
        conv = nn.Conv2d(before, after, 3, padding=int(padded), bias=not padded)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()] if padded else [conv, nn.ReLU()]
    return nn.Sequential(*layers)


class _Contracting(nn.Module):
    """The image to the features of all levels."""

    def __init__(self, channels: Sequence[int], in_channels: int, padded: bool, dropout: float):
        super().__init__()
        before = (in_channels, *channels)
        self.levels = nn.ModuleList(_twice(b, c, c, padded) for b, c in zip(before, channels, strict=False))
        self.pool, self.dropout = nn.MaxPool2d(2), nn.Dropout(dropout)

    def forward(self, image: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for i, level in enumerate(self.levels):
            x = level(self.pool(features[-1]) if features else image)
            features.append(self.dropout(x) if i >= len(self.levels) - 2 else x)
        return features


class _Expanding(nn.Module):
    """The features of all levels to logits."""

    def __init__(self, channels: Sequence[int], num_classes: int, padded: bool, bilinear: bool):
        super().__init__()
        self.padded, self.ups, self.levels = padded, nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(channels) - 1)):
            c = channels[i]
            if bilinear:
                self.ups.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
                self.levels.append(_twice(2 * c, c, channels[i - 1] if i else c, padded))
            else:
                self.ups.append(nn.ConvTranspose2d(channels[i + 1], c, 2, 2))
                self.levels.append(_twice(2 * c, c, c, padded))
        self.score = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x, *skips = features[::-1]
        for up, level, skip in zip(self.ups, self.levels, skips, strict=True):
            x = up(x)
            if self.padded:  # a pooled map of odd size comes back one short
                x = F.pad(x, (0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]))
            x = level(torch.cat([centre_crop(skip, x.shape[-2:]), x], 1))
        return self.score(x)


@register_model("unet", CARD)
class UNet(SegmentationModel):
    """Two convolutions at each level of a path down and of a path up, which is joined to what was there before.

    Without padding logits are those of the middle of the image, 388 x 388 of 572 x 572:
    ``model.classifier(model.backbone(image))``. The model itself continues the image beyond its edges as in mirrors
    first, as the paper does at the borders of its tiles. The paper weights the loss of each pixel, so that narrow
    borders between cells count: that is a matter of the criterion.

    Args:
        num_classes: K. Default 2.
        in_channels: of the image. Default 3; 1 in the paper.
        padded: convolutions keep the size, and have batch normalisation in place of biases. Default no.
        bilinear: interpolation in place of the transposed convolutions; the lower levels get narrower. Default no.
        channels: of the levels, finest first. Default the paper's.
        dropout: after the last two levels of the path down. Default 0.5.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``. H and W of at least 16 if padded
        (2 to the power of the poolings).

    Raises:
        ValueError: for options that are not possible, and for images that are too small.

    Example:
        >>> import torch, segops
        >>> model = segops.models.UNet(2, in_channels=1, channels=(8, 16, 32)).eval()
        >>> model(torch.randn(1, 1, 50, 40)).shape
        torch.Size([1, 2, 50, 40])
    """

    def __init__(
        self,
        num_classes: int = 2,
        *,
        in_channels: int = 3,
        padded: bool = False,
        bilinear: bool = False,
        channels: Sequence[int] = CHANNELS,
        dropout: float = 0.5,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("in_channels", in_channels, 1)
        _checks.fraction("dropout", dropout)
        if len(channels) < 2:
            raise ValueError(f"channels: expected those of at least 2 levels, got {channels}")
        widths = (*channels[:-1], channels[-2]) if bilinear else channels
        down = _Contracting(widths, in_channels, padded, dropout)
        super().__init__(down, _Expanding(channels, num_classes, padded, bilinear))
        self.in_channels, self.padded, self.scale = in_channels, padded, 2 ** (len(channels) - 1)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of logits, which are those of the image's size already."""
        size = image.shape[-2:]
        if self.padded:
            if min(size) < self.scale:
                raise ValueError(f"image: expected {self.scale} pixels a side or more, got {_checks.shape(image)}")
        else:
            image = mirror_pad(image, *map(self.border, size))
        return {"out": crop(self.classifier(self.backbone(image)), size)}

    def border(self, size: int) -> tuple[int, int]:
        """What to add before and after ``size`` pixels, so that all poolings come out even and the middle has all."""
        below = 4 * (self.scale - 1)  # what the convolutions of the path down take, in pixels; that up takes as much
        margin = below + 2 * self.scale
        rest = -(size + 2 * margin - below) % self.scale
        return margin, margin + rest
