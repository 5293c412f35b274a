"""ESPNet: pyramids of tiny dilated convolutions behind a reduction, summed step by step."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import aspp
from .model import SegmentationModel
from .parts.padding import crop
from .registry import Anchor, Card, register_model

CARD = Card(
    title="ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation",
    authors="Mehta, Rastegari, Caspi, Shapiro, Hajishirzi",
    year=2018,
    venue="ECCV",
    url="https://arxiv.org/abs/1803.06815",
    family="efficient",
    canonical="ESPNet with p = 2 and q = 8, 20 classes as the released nets; ESPNet-C by decoder=False",
    uncertain="The paper has images whose sides 8 divides; for others maps are cut off below and to the right.",
    fidelity="structural",
    kernels=("aspp",),
    anchors=(
        Anchor(365_109, {"num_classes": 20}, "released code"),
        Anchor(363_462, {"num_classes": 19}, "released code"),
        Anchor(349_449, {"num_classes": 20, "decoder": False}, "released code"),
        Anchor(203_189, {"num_classes": 20, "q": 3}, "released code"),
    ),
    small={"num_classes": 5, "p": 1, "q": 1},
)
RATES = (1, 2, 4, 8, 16)


class ESP(nn.Module):
    """Reduce, convolve at five rates, sum the maps of rates above 1 as they come, concatenate.

    Args:
        in_channels, out_channels: of the block; fewer than 5 that come out have as many rates.
        stride: 2: the reduction is a 3 x 3 convolution with stride.
        residual: add the input, before normalisation and activation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, residual: bool = True):
        super().__init__()
        rates = RATES[:out_channels]
        inner = max(1, out_channels // len(RATES))
        first = out_channels - (len(rates) - 1) * inner
        kernel = 3 if stride == 2 else 1
        self.reduce = nn.Conv2d(in_channels, inner, kernel, stride, kernel // 2, bias=False)
        self.rates = nn.ModuleList(
            nn.Conv2d(inner, first if rate == 1 else inner, 3, padding=rate, dilation=rate, bias=False)
            for rate in rates
        )
        self.residual = residual
        self.act = norm_act(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        convs: list[Any] = list(self.rates)
        first, *others = aspp(self.reduce(x), [conv.weight for conv in convs], None, RATES[: len(convs)])
        out = torch.cat([first, *accumulate(others)], 1)
        return self.act(x + out if self.residual else out)


def norm_act(channels: int) -> nn.Sequential:
    """Batch normalisation and PReLU of each channel."""
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels))


def double(channels: int) -> nn.ConvTranspose2d:
    """Twice the size."""
    return nn.ConvTranspose2d(channels, channels, 2, 2, bias=False)


class _Encoder(nn.Module):
    """The image to maps of 19, 131 and 256 channels at strides 2, 4 and 8; levels 2 and 3 read the small image too."""

    def __init__(self, p: int, q: int):
        super().__init__()
        self.halve = nn.AvgPool2d(3, 2, 1)
        self.level1 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), norm_act(16))
        self.join1 = norm_act(16 + 3)
        self.down2 = ESP(16 + 3, 64, stride=2, residual=False)
        self.level2 = nn.Sequential(*(ESP(64, 64) for _ in range(p)))
        self.join2 = norm_act(64 + 64 + 3)
        self.down3 = ESP(64 + 64 + 3, 128, stride=2, residual=False)
        self.level3 = nn.Sequential(*(ESP(128, 128) for _ in range(q)))
        self.join3 = norm_act(128 + 128)

    def forward(self, image: Tensor) -> list[Tensor]:
        half = self.halve(image)
        c1 = self.join1(torch.cat([self.level1(image), half], 1))
        down = self.down2(c1)
        c2 = self.join2(torch.cat([self.level2(down), down, self.halve(half)], 1))
        down = self.down3(c2)
        return [c1, c2, self.join3(torch.cat([down, self.level3(down)], 1))]


class _Decoder(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        k = num_classes
        self.score3, self.score2 = nn.Conv2d(256, k, 1, bias=False), nn.Conv2d(131, k, 1, bias=False)
        self.up3 = nn.Sequential(nn.BatchNorm2d(k, eps=1e-3), double(k))
        self.merge2 = nn.Sequential(norm_act(2 * k), ESP(2 * k, k, residual=False))
        self.up2 = nn.Sequential(double(k), norm_act(k))
        self.merge1 = nn.Sequential(nn.Conv2d(k + 19, k, 3, padding=1, bias=False), norm_act(k))
        self.up1 = double(k)

    def forward(self, features: list[Tensor]) -> Tensor:
        c1, c2, c3 = features
        x = crop(self.up3(self.score3(c3)), c2.shape[-2:])
        x = self.merge2(torch.cat([self.score2(c2), x], 1))
        x = crop(self.up2(x), c1.shape[-2:])
        return self.up1(self.merge1(torch.cat([x, c1], 1)))


@register_model("espnet", CARD)
class ESPNet(SegmentationModel):
    """Efficient spatial pyramids at two strides, and a light decoder in the space of the classes.

    The paper trains ESPNet-C first, then the whole.

    Args:
        num_classes: K. Default 20, the 19 of Cityscapes and one for all else. With fewer than 5 the decoder's pyramid,
            which has K channels, has as many rates.
        p: blocks at stride 4. Default 2.
        q: blocks at stride 8. Default 8.
        decoder: without it (ESPNet-C) logits are those of stride 8, interpolated. Default with it.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ValueError: for numbers below 1.

    Example:
        >>> import torch, segops
        >>> model = segops.models.ESPNet(5, q=3).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(self, num_classes: int = 20, *, p: int = 2, q: int = 8, decoder: bool = True):
        _checks.count("num_classes", num_classes, 1)
        encoder = _Encoder(_checks.count("p", p, 1), _checks.count("q", q, 1))
        super().__init__(encoder, _Decoder(num_classes) if decoder else nn.Conv2d(256, num_classes, 1, bias=False))
        self.whole = decoder

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of logits: of the image's size, at stride 8 without decoder."""
        features = self.backbone(image)
        if not self.whole:
            return {"out": self.classifier(features[-1])}
        return {"out": crop(self.classifier(features), image.shape[-2:])}
