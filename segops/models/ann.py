"""Asymmetric non-local network: pixels attend to the averages of a pyramid, of an earlier stage and of their own."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from ..nn import AFNB, APNB
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Asymmetric Non-local Neural Networks for Semantic Segmentation",
    authors="Zhu, Xu, Bai, Huang, Bai",
    year=2019,
    venue="ICCV",
    url="https://arxiv.org/abs/1908.07678",
    family="attention",
    canonical="the authors' code: ResNet-101 with a deep stem, pyramids of 1, 3, 6 and 8 rows, 110 keys",
    uncertain="",
    fidelity="structural",
    kernels=("asymmetric_nonlocal", "pyramid_pool", "atrous_conv2d"),
    anchors=(
        Anchor(67_694_310, {"num_classes": 19}, "the authors' code"),
        Anchor(62_964_435, {"num_classes": 19, "aux": False}, "the same without its auxiliary head of 4,729,875"),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 16},
)


class ANNHead(nn.Module):
    """Fusion of two stages by attention, reduction, attention within the map, classifier."""

    def __init__(self, low_channels: int, high_channels: int, num_classes: int, channels: int):
        super().__init__()
        inner = channels // 2
        self.fusion = AFNB(low_channels, high_channels, inner, inner)
        self.reduce = conv_norm_act(high_channels, channels, bias=True)
        self.attention = APNB(channels, inner, inner)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        *_, low, high = features
        return self.classifier(self.attention(self.reduce(self.fusion(low, high))))


@register_model("ann", CARD)
class ANN(SegmentationModel):
    """A dilated ResNet with asymmetric fusion and asymmetric pyramid non-local blocks.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a ResNet of timm. Default ``resnet101s``, with the deep stem.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: of the reduced map; queries, keys and values have half as many. Default 512.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride or number that there can't be.

    Example:
        >>> import torch, segops
        >>> model = segops.models.ANN(5, "resnet18", channels=16).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 19,
        encoder: str = "resnet101s",
        *,
        pretrained: bool = False,
        output_stride: int = 8,
        channels: int = 512,
        aux: bool = True,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 2)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, ceil_mode=True)
        *_, c4, c5 = trunk.channels
        head, dsn = ANNHead(c4, c5, num_classes, channels), None
        if aux:
            dsn = FCNHead(c4, num_classes, channels, index=-2, bias=True, dropout=0.05, whole_channels=True)
        super().__init__(trunk, head, dsn, align_corners=True)
