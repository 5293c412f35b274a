"""ESPNet: efficient spatial pyramids of dilated convolutions, small enough for a camera's processor."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, nn

from .. import _checks
from ..nn import AtrousConv2d
from .model import SegmentationModel
from .registry import Anchor, Card, register_model

CARD = Card(
    title="ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation",
    authors="Mehta, Rastegari, Caspi, Shapiro, Hajishirzi",
    year=2018,
    venue="ECCV",
    url="https://arxiv.org/abs/1803.06815",
    family="efficient",
    canonical="the authors' code with p = 2 and q = 8 blocks, for the 19 classes of Cityscapes and one of all else",
    uncertain="",
    fidelity="structural",
    kernels=("atrous_conv2d",),
    anchors=(
        Anchor(365_109, {"num_classes": 20}, "the authors' code"),
        Anchor(363_462, {"num_classes": 19}, "the authors' code"),
        Anchor(349_449, {"num_classes": 20, "decoder": False}, "the authors' code, ESPNet-C"),
    ),
    small={"num_classes": 5, "blocks": (1, 1)},
)
RATES = (1, 2, 4, 8, 16)


@register_model("espnet", CARD)
class ESPNet(SegmentationModel):
    """An encoder of ESP blocks at strides 2, 4 and 8, and a decoder that learns to go back to the image's size.

    Args:
        num_classes: K. Default 20, the authors' for Cityscapes.
        blocks: ESP blocks at strides 4 and 8, p and q. Default (2, 8).
        decoder: ``False`` is ESPNet-C, the encoder with a classifier at stride 8. Default ``True``.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict with them under ``"out"``.

    Raises:
        TypeError, ValueError: for numbers that are no integers of at least 1.

    Example:
        >>> import torch, segops
        >>> model = segops.models.ESPNet(5, (1, 1)).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(self, num_classes: int = 20, blocks: tuple[int, int] = (2, 8), *, decoder: bool = True):
        _checks.count("num_classes", num_classes, 1)
        p, q = _checks.pair("blocks", blocks, 0)
        super().__init__(Encoder(p, q), Decoder(num_classes) if decoder else Classifier(num_classes))


class Encoder(nn.Module):
    """The image to maps of 19, 131 and 256 channels at strides 2, 4 and 8; the smaller image is joined to the first."""

    def __init__(self, p: int, q: int):
        super().__init__()
        self.level1 = conv_norm_act(3, 16, 3, stride=2)
        self.norm1 = norm_act(19)
        self.down2 = ESP(19, 64, stride=2)
        self.level2 = nn.Sequential(*(ESP(64, 64, residual=True) for _ in range(p)))
        self.norm2 = norm_act(131)
        self.down3 = ESP(131, 128, stride=2)
        self.level3 = nn.Sequential(*(ESP(128, 128, residual=True) for _ in range(q)))
        self.norm3 = norm_act(256)
        self.shrink = nn.AvgPool2d(3, 2, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        half = self.shrink(image)
        one = self.norm1(torch.cat([self.level1(image), half], 1))
        down = self.down2(one)
        two = self.norm2(torch.cat([self.level2(down), down, self.shrink(half)], 1))
        down = self.down3(two)
        return [one, two, self.norm3(torch.cat([down, self.level3(down)], 1))]


class Decoder(nn.Module):
    """Twice as large three times, joined with the encoder's maps on the way, the last step giving the logits."""

    def __init__(self, classes: int):
        super().__init__()
        self.project3 = nn.Conv2d(256, classes, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(classes, eps=1e-3)
        self.up3 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)
        self.project2 = nn.Conv2d(131, classes, 1, bias=False)
        self.combine2 = nn.Sequential(norm_act(2 * classes), ESP(2 * classes, classes))
        self.up2 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)
        self.norm2 = norm_act(classes)
        self.combine1 = conv_norm_act(19 + classes, classes, 3)
        self.up1 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        one, two, three = features
        x = cropped(self.up3(self.norm3(self.project3(three))), two)
        x = self.combine2(torch.cat([self.project2(two), x], 1))
        x = self.norm2(cropped(self.up2(x), one))
        return self.up1(self.combine1(torch.cat([x, one], 1)))


class Classifier(nn.Module):
    """Of ESPNet-C: logits at stride 8."""

    def __init__(self, classes: int):
        super().__init__()
        self.project3 = nn.Conv2d(256, classes, 1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.project3(features[-1])


class ESP(nn.Module):
    """Reduce, split into five rates, transform, merge: sums over the rates, so that no pattern of holes is left.

    The sums start with the second rate: the first is joined as it is.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, residual: bool = False):
        super().__init__()
        rates = RATES[:out_channels]  # few classes have few rates
        n = max(1, out_channels // len(RATES))
        widths = [out_channels - (len(rates) - 1) * n] + [n] * (len(rates) - 1)
        kernel = 1 if stride == 1 else 3
        self.reduce = nn.Conv2d(in_channels, n, kernel, stride, kernel // 2, bias=False)
        self.branches = nn.ModuleList(
            AtrousConv2d(n, width, 3, padding=rate, dilation=rate, bias=False)
            for width, rate in zip(widths, rates, strict=True)
        )
        self.norm_act = norm_act(out_channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        first, *others = (branch(reduced) for branch in self.branches)
        out = torch.cat([first, *accumulate(others)], 1)
        return self.norm_act(x + out if self.residual else out)


def conv_norm_act(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """With the authors' normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, norm_act(out_channels))


def norm_act(channels: int) -> nn.Sequential:
    """Batch normalisation with the authors' epsilon, and a PReLU with a slope for each channel."""
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels))


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """To the size of another map, which is a row or column smaller where the image's side is odd."""
    return x[..., : like.shape[-2], : like.shape[-1]]
