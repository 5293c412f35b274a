"""EMANet: features written again in terms of a few bases, which expectation-maximization finds in each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import _checks
from ..nn import EMAttention
from .model import Criterion, SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Expectation-Maximization Attention Networks for Semantic Segmentation",
    authors="Li, Zhong, Wu, Yang, Lin, Liu",
    year=2019,
    venue="ICCV",
    url="https://arxiv.org/abs/1907.13426",
    family="attention",
    canonical="the authors' code: ResNet with a deep stem, dilations 2, 8 and 16 in its last stage, 64 bases, 3 steps",
    uncertain="The authors' loss is divided by all pixels, ignored ones too; that is a matter of the criterion here.",
    fidelity="structural",
    kernels=("em_attention", "atrous_conv2d"),
    anchors=(
        Anchor(53_773_525, {"num_classes": 21}, "the authors' code"),
        Anchor(34_781_397, {"num_classes": 21, "encoder": "resnet50s"}, "the authors' code"),
    ),
    small={"encoder": "resnet18", "multi_grid": (1, 2), "num_classes": 5, "channels": 16, "num_bases": 4},
)
MULTI_GRID = (1, 2, 4)  # but the first block keeps the dilation of the stage before: 2, 8 and 16 at stride 8


class EMAHead(nn.Module):
    """3 x 3 convolution, attention, 3 x 3 convolution, classifier; the bases of the images come out too."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, num_bases: int):
        super().__init__()
        self.reduce = conv_norm_act(in_channels, channels)
        self.attention = EMAttention(channels, num_bases)
        self.merge = conv_norm_act(channels, channels // 2)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels // 2, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.attention.norm.momentum

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The features to logits and bases (N, channels, num_bases)."""
        x, bases = self.attention(self.reduce(features[-1]))
        return self.classifier(self.dropout(self.merge(x))), bases


@register_model("emanet", CARD)
class EMANet(SegmentationModel):
    """A dilated ResNet and the expectation-maximization attention unit.

    The bases follow those of the training images as a moving average over all processes: ``loss`` takes care of it.
    No gradient passes the iterations, and the unit's first convolution is not trained, as published.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        encoder: a ResNet of timm. Default ``resnet101s``, with the deep stem.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        multi_grid: factors of the dilations of the last stage, one for each block. Default (1, 2, 4).
        channels: of the attention. Default 512.
        num_bases: of the attention. Default 64.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``, and ``"bases"`` (N, channels, num_bases).

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride or number that there can't be.

    Example:
        >>> import torch, segops
        >>> model = segops.models.EMANet(5, "resnet18", multi_grid=(1, 2), channels=16, num_bases=4).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 21,
        encoder: str = "resnet101s",
        *,
        pretrained: bool = False,
        output_stride: int = 8,
        multi_grid: Sequence[int] = MULTI_GRID,
        channels: int = 512,
        num_bases: int = 64,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 2)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, multi_grid=multi_grid)
        super().__init__(trunk, EMAHead(trunk.channels[-1], num_classes, channels, num_bases), align_corners=True)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        out, bases = self.classifier(self.backbone(image))
        return {"out": out, "bases": bases} if self.training else {"out": out}

    def loss(self, maps: dict[str, Tensor], target: Tensor, criterion: Criterion | None = None) -> Tensor:
        """That of the logits; then the bases follow those of these images."""
        value = super().loss(maps, target, criterion)
        head: Any = self.classifier
        head.attention.update_bases(maps["bases"].detach())
        return value
