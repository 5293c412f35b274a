"""Dilated convolutional networks for vessels of the retina: a reconstruction from what the abstract tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from ..losses import dice_loss
from ..ops import aspp
from .model import Criterion, SegmentationModel
from .parts.layers import conv_norm_act
from .parts.padding import crop, mirror_pad
from .registry import Card, register_model

CARD = Card(
    title="Deep Dilated Convolutional Nets for the Automatic Segmentation of Retinal Vessels",
    authors="Hatamizadeh, Hosseini, Liu, Schwartz, Terzopoulos",
    year=2019,
    venue="arXiv",
    url="https://arxiv.org/abs/1905.12120",
    family="encoder-decoder",
    canonical="a reconstruction: an encoder and a decoder with dilated spatial pyramid pooling between them",
    uncertain="No code was released. From the abstract: the encoder and decoder, dilated spatial pyramid pooling at "
    "the junction, whole images. From other work of the first author: the four rates, their concatenation, transposed "
    "convolutions and the Dice loss. Decided here: all channels and depths, residual stages, joining by concatenation. "
    "No number of parameters is published to hold it to.",
    fidelity="reconstruction",
    kernels=("aspp",),
    anchors=(),
    small={"num_classes": 5, "channels": (4, 8, 8, 16)},
)
RATES = (6, 12, 18, 24)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions with normalisation and activation, and the input, projected, added."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convs = nn.Sequential(conv_norm_act(in_channels, out_channels), conv_norm_act(out_channels, out_channels))
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x) + self.skip(x)


class DSPP(nn.Module):
    """3 x 3 convolutions at four rates on one map, each with activation, then normalisation; concatenated."""

    def __init__(self, channels: int):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in RATES)
        self.norm = nn.BatchNorm2d(len(RATES) * channels)

    def forward(self, x: Tensor) -> Tensor:
        branches: list[Any] = list(self.branches)
        maps: Any = aspp(x, [b.weight for b in branches], [b.bias for b in branches], RATES, combine="concat")
        return self.norm(F.relu(maps))


class _Encoder(nn.Module):
    """The image to the maps of all stages, and that of the pyramid at the junction."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        before = (3, *channels)
        self.stages = nn.ModuleList(_Residual(b, c) for b, c in zip(before, channels, strict=False))
        self.pool, self.pyramid = nn.MaxPool2d(2), DSPP(channels[-1])

    def forward(self, image: Tensor) -> list[Tensor]:
        x, features = image, []
        for stage in self.stages:
            features.append(stage(x))
            x = self.pool(features[-1])
        return [*features, self.pyramid(x)]


class _Decoder(nn.Module):
    def __init__(self, channels: Sequence[int], num_classes: int):
        super().__init__()
        self.ups, self.stages = nn.ModuleList(), nn.ModuleList()
        before = len(RATES) * channels[-1]
        for c in reversed(channels):
            self.ups.append(nn.ConvTranspose2d(before, c, 2, 2))
            self.stages.append(nn.Sequential(conv_norm_act(2 * c, c), conv_norm_act(c, c)))
            before = c
        self.score = nn.Conv2d(before, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        x, *skips = features[::-1]
        for up, stage, skip in zip(self.ups, self.stages, skips, strict=True):
            x = stage(torch.cat([up(x), skip], 1))
        return self.score(x)


@register_model("retinal_vessel_net", CARD)
class RetinalVesselNet(SegmentationModel):
    """A small residual U of whole images, with convolutions at four rates at its bottom. A reconstruction.

    The default loss is Dice's. With one class logits are those of a sigmoid.

    Args:
        num_classes: K. Default 2, background and vessels.
        channels: of the stages, each of which halves the resolution. Default (16, 32, 64, 128).

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``. Images are continued as in mirrors to
        multiples of 16.

    Raises:
        ValueError: for options that are not possible.

    Example:
        >>> import torch, segops
        >>> model = segops.models.RetinalVesselNet(channels=(4, 8, 8, 16)).eval()
        >>> model(torch.randn(1, 3, 73, 70)).shape
        torch.Size([1, 2, 73, 70])
    """

    def __init__(self, num_classes: int = 2, *, channels: Sequence[int] = (16, 32, 64, 128)):
        _checks.count("num_classes", num_classes, 1)
        if not channels:
            raise ValueError("channels: expected those of at least one stage, got none")
        super().__init__(_Encoder(channels), _Decoder(channels, num_classes))
        self.multiple = 2 ** len(channels)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of logits, which are those of the image's size already."""
        size = image.shape[-2:]
        image = mirror_pad(image, *((0, -side % self.multiple) for side in size))
        return {"out": crop(self.classifier(self.backbone(image)), size)}

    def loss(self, maps: dict[str, Tensor], target: Tensor, criterion: Criterion | None = None) -> Tensor:
        """As of every model, by default ``segops.losses.dice_loss``, 255 ignored."""
        return super().loss(maps, target, dice_loss if criterion is None else criterion)
