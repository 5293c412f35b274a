"""OCNet: object context, the features of pixels that look alike, gathered by self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import LEAKY_RELU, Activation, conv_norm_act
from .parts.object_context import ObjectContext
from .registry import Anchor, Card, register_model

CARD = Card(
    title="OCNet: Object Context Network for Scene Parsing",
    authors="Yuan, Wang",
    year=2018,
    venue="arXiv",
    url="https://arxiv.org/abs/1809.00916",
    family="attention",
    canonical="the authors' code: ResNet-101 with a deep stem and base, pyramid or ASP object context",
    uncertain="Where a map has fewer rows than the pyramid's partition, the last cell has them all. The authors' "
    "network of the pyramid has no activation in front of it and in its auxiliary head, unlike their other two; nor "
    "has this.",
    fidelity="structural",
    kernels=("nonlocal_attention", "atrous_conv2d"),
    anchors=(
        Anchor(57_722_854, {"num_classes": 19}, "the authors' code"),
        Anchor(62_584_294, {"num_classes": 19, "variant": "pyramid"}, "the authors' code"),
        Anchor(62_542_182, {"num_classes": 19, "variant": "asp"}, "the authors' code"),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 16},
)


class BaseContext(nn.Module):
    """Context of the whole map, joined to it."""

    def __init__(self, channels: int):
        super().__init__()
        self.context = ObjectContext(channels, channels // 2)
        self.merge = conv_norm_act(2 * channels, channels, 1, bias=True, act=LEAKY_RELU)
        self.dropout = nn.Dropout2d(0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.merge(torch.cat([self.context(x), x], 1)))


class PyramidContext(nn.Module):
    """Context within the cells of four partitions, joined to the map, which is widened to as many channels."""

    def __init__(self, channels: int, partitions: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        self.contexts = nn.ModuleList(ObjectContext(channels, channels, cells=n) for n in partitions)
        wide = len(partitions) * channels
        self.widen = conv_norm_act(channels, wide, 1, bias=True, act=LEAKY_RELU)
        self.merge = conv_norm_act(2 * wide, channels, 1, bias=True, act=LEAKY_RELU)
        self.dropout = nn.Dropout2d(0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.merge(torch.cat([self.widen(x), *(context(x) for context in self.contexts)], 1)))


class ASPContext(nn.Module):
    """Context of the map at half its size beside a 1 x 1 convolution and three with holes."""

    def __init__(self, channels: int, rates: tuple[int, ...] = (12, 24, 36)):
        super().__init__()
        inner = channels // 2
        self.reduce = conv_norm_act(channels, inner, bias=True, act=LEAKY_RELU)
        self.context = ObjectContext(inner, inner, pool=True)
        self.smooth = conv_norm_act(inner, inner, 1, bias=True, act=LEAKY_RELU)
        self.point = conv_norm_act(channels, inner, 1, act=LEAKY_RELU)
        self.atrous = nn.ModuleList(conv_norm_act(channels, inner, dilation=r, act=LEAKY_RELU) for r in rates)
        self.merge = conv_norm_act((2 + len(rates)) * inner, channels, 1, act=LEAKY_RELU)
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        context = self.smooth(self.context(self.reduce(x)))
        return self.dropout(self.merge(torch.cat([context, self.point(x), *(conv(x) for conv in self.atrous)], 1)))


CONTEXTS = {"base": BaseContext, "pyramid": PyramidContext, "asp": ASPContext}


class OCHead(nn.Sequential):
    """Reduction, object context, classifier."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, variant: str, act: Activation):
        context = CONTEXTS[variant](channels)
        reduce = conv_norm_act(in_channels, channels, bias=True, act=act)
        super().__init__(reduce, context, nn.Conv2d(channels, num_classes, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        return super().forward(features[-1])


@register_model("ocnet", CARD)
class OCNet(SegmentationModel):
    """A dilated ResNet and object context.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a ResNet of timm. Default ``resnet101s``, with the deep stem.
        variant: ``"base"`` (default), ``"pyramid"`` or ``"asp"``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: of the context. Default 512.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride, variant or number that there can't be.

    Example:
        >>> import torch, segops
        >>> model = segops.models.OCNet(5, "resnet18", variant="asp", channels=16).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 19,
        encoder: str = "resnet101s",
        *,
        variant: str = "base",
        pretrained: bool = False,
        output_stride: int = 8,
        channels: int = 512,
        aux: bool = True,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 4)
        _checks.choice("variant", variant, tuple(CONTEXTS))
        trunk = make_encoder(
            encoder, output_stride=output_stride, pretrained=pretrained, convention="semseg", ceil_mode=True
        )
        *_, c4, c5 = trunk.channels
        act: Activation = nn.Identity if variant == "pyramid" else LEAKY_RELU  # the authors' networks differ here
        head, dsn = OCHead(c5, num_classes, channels, variant, act), None
        if aux:
            rate = 0.1 if variant == "asp" else 0.05
            dsn = FCNHead(c4, num_classes, channels, index=-2, bias=True, dropout=rate, whole_channels=True, act=act)
        super().__init__(trunk, head, dsn, align_corners=True)
