"""DeepLab v3+: atrous spatial pyramid pooling with separable convolutions, and a decoder at stride 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from .model import SegmentationModel, resize
from .parts.encoder import encoder as make_encoder
from .parts.layers import conv_norm_act
from .parts.separable import separable_conv_norm_act
from .registry import Card, register_model

CARD = Card(
    title="Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
    authors="Chen, Zhu, Papandreou, Schroff, Adam",
    year=2018,
    venue="ECCV",
    url="https://arxiv.org/abs/1802.02611",
    family="atrous",
    canonical="Xception-65 at stride 16, separable convolutions in pooling and decoder, low-level features of stride 4",
    uncertain="No exact count of parameters is published; that of Xception-71 rounds to the 43.5 million of HRNet's "
    "paper. As in the authors' code, normalisation and ReLU stand between the two parts of a separable convolution, "
    "and corners are aligned. That code reads the low-level features of Xception before their ReLU, timm's trunk gives "
    "them after it; its ResNets stride in the last block of a stage, timm's in the first; its MobileNetV2 has no "
    "decoder, here it has one.",
    fidelity="structural",
    kernels=("atrous_conv2d",),
    anchors=(),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 32},
)


class SeparableASPP(nn.Module):
    """The mean of the image, a 1 x 1 convolution, separable convolutions at several rates; concatenated, and a 1 x 1
    convolution over all."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]):
        super().__init__()
        self.pooled = conv_norm_act(in_channels, channels, 1)
        holes = [separable_conv_norm_act(in_channels, channels, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([conv_norm_act(in_channels, channels, 1), *holes])
        self.project = conv_norm_act((2 + len(rates)) * channels, channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to (N, channels, H, W)."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.dropout(self.project(torch.cat([mean, *(branch(x) for branch in self.branches)], 1)))


class DeepLabV3PlusHead(nn.Module):
    """The pooling of the last features, resized to the low-level ones and refined with them."""

    def __init__(
        self,
        in_channels: int,
        low_channels: int,
        num_classes: int,
        rates: Sequence[int],
        channels: int = 256,
        low_index: int = 1,
    ):
        super().__init__()
        _checks.count("num_classes", num_classes, 1)
        self.low_index = low_index
        self.aspp = SeparableASPP(in_channels, _checks.count("channels", channels, 1), rates)
        self.low = conv_norm_act(low_channels, 48, 1)
        self.refine = nn.Sequential(
            separable_conv_norm_act(channels + 48, channels), separable_conv_norm_act(channels, channels)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits at the stride of the low-level ones."""
        low = self.low(features[self.low_index])
        high = resize(self.aspp(features[-1]), low.shape[2:], align_corners=True)
        return self.classifier(self.refine(torch.cat([high, low], 1)))


@register_model("deeplab_v3_plus", CARD)
class DeepLabV3Plus(SegmentationModel):
    """DeepLab v3 with separable convolutions and a decoder that looks at features of stride 4.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        encoder: a trunk of timm with features of stride 4, ``resnet101`` or ``mobilenetv2_100`` for instance. Default
            ``xception65``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32; the rates are 96 / stride times (1, 2, 3). Default 16.
        multi_grid: factors of the dilations of a ResNet's last stage, one for each block, (1, 2, 4) in the paper; all
            blocks of a stage have its dilation then. Default none.
        channels: of pooling and decoder. Default 256.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``. Training needs N >= 2: the branch of the
        mean normalises N values.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride or multi_grid that there is not, or a number below 1.

    Example:
        >>> import torch, segops
        >>> model = segops.models.DeepLabV3Plus(5, "resnet18", channels=32).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 5, 65, 97])
    """

    def __init__(
        self,
        num_classes: int = 21,
        encoder: str = "xception65",
        *,
        pretrained: bool = False,
        output_stride: int = 16,
        multi_grid: Sequence[int] | None = None,
        channels: int = 256,
    ):
        how: dict[str, Any] = {} if multi_grid is None else {"convention": "semseg", "multi_grid": multi_grid}
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, **how)
        if 4 not in trunk.reductions:
            raise ValueError(f"encoder: expected a trunk with features of stride 4, {encoder!r} has {trunk.reductions}")
        low = trunk.reductions.index(4)
        rates = [96 // output_stride * i for i in (1, 2, 3)]
        head = DeepLabV3PlusHead(trunk.channels[-1], trunk.channels[low], num_classes, rates, channels, low)
        super().__init__(trunk, head, align_corners=True)
