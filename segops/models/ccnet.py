"""CCNet: every pixel gathers from its row and its column, twice, and so from the whole image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..nn import CrissCrossAttention
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import LEAKY_RELU, conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="CCNet: Criss-Cross Attention for Semantic Segmentation",
    authors="Huang, Wang, Huang, Huang, Wei, Liu",
    year=2019,
    venue="ICCV",
    url="https://arxiv.org/abs/1811.11721",
    family="attention",
    canonical="the authors' code: ResNet-101 with a deep stem, two passes, leaky ReLU of in-place normalisation",
    uncertain="",
    fidelity="structural",
    kernels=("criss_cross_attention", "atrous_conv2d"),
    anchors=(
        Anchor(71_287_911, {"num_classes": 19}, "the authors' code"),
        Anchor(66_558_036, {"num_classes": 19, "aux": False}, "the authors' code"),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 16},
)


class RCCAHead(nn.Module):
    """Reduce, attend in passes that share their weights, merge with what came in."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, recurrence: int):
        super().__init__()
        self.reduce = conv_norm_act(in_channels, channels, act=LEAKY_RELU)
        self.attention = CrissCrossAttention(channels, recurrence=recurrence)
        self.smooth = conv_norm_act(channels, channels, act=LEAKY_RELU)
        self.merge = conv_norm_act(in_channels + channels, channels, act=LEAKY_RELU)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        x = features[-1]
        context = self.smooth(self.attention(self.reduce(x)))
        return self.classifier(self.dropout(self.merge(torch.cat([x, context], 1))))


@register_model("ccnet", CARD)
class CCNet(SegmentationModel):
    """A dilated ResNet and recurrent criss-cross attention.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a ResNet of timm. Default ``resnet101s``, with the deep stem.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: of the attention, at least 8. Default 512.
        recurrence: passes. Default 2.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride or number that there can't be.

    Example:
        >>> import torch, segops
        >>> model = segops.models.CCNet(5, "resnet18", channels=16).eval()
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
        recurrence: int = 2,
        aux: bool = True,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 8)
        trunk = make_encoder(
            encoder, output_stride=output_stride, pretrained=pretrained, convention="semseg", ceil_mode=True
        )
        *_, c4, c5 = trunk.channels
        head, dsn = RCCAHead(c5, num_classes, channels, recurrence), None
        if aux:
            dsn = FCNHead(c4, num_classes, channels, index=-2, bias=True, whole_channels=True, act=LEAKY_RELU)
        super().__init__(trunk, head, dsn, align_corners=True)
