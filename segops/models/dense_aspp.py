"""DenseASPP: convolutions with holes one after the other, each on all that came before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..nn import AtrousConv2d, accelerate
from .model import SegmentationModel, resize
from .parts.encoder import encoder as make_encoder
from .registry import Anchor, Card, register_model

RATES = (3, 6, 12, 18, 24)
# Channels of the 1 x 1 and of the 3 x 3 convolution of each rate.
WIDTHS = {"densenet121": (128, 64), "densenet161": (512, 128), "densenet169": (336, 168), "densenet201": (480, 240)}
_COUNTED = "the authors' code"
CARD = Card(
    title="DenseASPP for Semantic Segmentation in Street Scenes",
    authors="Yang, Yu, Zhang, Li, Yang",
    year=2018,
    venue="CVPR",
    url="https://openaccess.thecvf.com/content_cvpr_2018/html/Yang_DenseASPP_for_Semantic_CVPR_2018_paper.html",
    family="atrous",
    canonical="the authors' code on DenseNet-161 at stride 8",
    uncertain="In that code the first ReLU of the head works in place, so that the features are concatenated after it, "
    "and so they are here.",
    fidelity="structural",
    kernels=("atrous_conv2d",),
    anchors=(
        Anchor(8_280_851, {"encoder": "densenet121", "num_classes": 19}, _COUNTED),
        Anchor(35_395_427, {"encoder": "densenet161", "num_classes": 19}, _COUNTED),
        Anchor(18_420_675, {"encoder": "densenet169", "num_classes": 19}, _COUNTED),
        Anchor(28_639_987, {"encoder": "densenet201", "num_classes": 19}, _COUNTED),
    ),
    small={"encoder": "densenet121", "num_classes": 5, "blocks": (1, 2, 2, 1)},
)


def dilate_densenet(trunk: Any, output_stride: int) -> None:
    """Take the pooling out of the transitions beyond a stride, in place, with dilations in the blocks after them; and
    put one more transition, without pooling, between the last block and its normalisation."""
    reduction, rate = 8, 1
    for index in (2, 3):
        if reduction == output_stride:
            rate *= 2
            trunk[f"features_transition{index}"].pool = nn.Identity()
        else:
            reduction *= 2
        for layer in trunk[f"features_denseblock{index + 1}"].values():
            layer.conv2.dilation = layer.conv2.padding = (rate, rate)
    channels, norm_act = trunk.channels[-1], type(trunk.features_norm5)
    last = nn.Sequential(norm_act(channels), nn.Conv2d(channels, channels // 2, 1, bias=False))
    trunk.features_norm5 = nn.Sequential(last, norm_act(channels // 2))
    trunk.channels = [*trunk.channels[:-1], channels // 2]
    trunk.reductions = [min(r, output_stride) for r in trunk.reductions]
    accelerate(trunk)


class DenseASPPLayer(nn.Sequential):
    """(Normalisation, ReLU,) 1 x 1 convolution, normalisation, ReLU, convolution with holes, dropout of channels."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, rate: int, *, first: bool):
        before = [] if first else [nn.BatchNorm2d(in_channels, momentum=3e-4), nn.ReLU()]
        super().__init__(
            *before,
            nn.Conv2d(in_channels, inner, 1),
            nn.BatchNorm2d(inner, momentum=3e-4),
            nn.ReLU(),
            AtrousConv2d(inner, out_channels, 3, padding=rate, dilation=rate),
            nn.Dropout2d(0.1),
        )


class DenseASPPHead(nn.Module):
    """Layers of growing rate, each in front of the features that it saw; the classifier over all of them."""

    def __init__(self, in_channels: int, num_classes: int, inner: int, out_channels: int):
        super().__init__()
        _checks.count("num_classes", num_classes, 1)
        self.layers = nn.ModuleList(
            DenseASPPLayer(in_channels + i * out_channels, inner, out_channels, rate, first=i == 0)
            for i, rate in enumerate(RATES)
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(in_channels + len(RATES) * out_channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits at stride 8."""
        x = features[-1]
        if x.shape[2:] != features[2].shape[2:]:
            x = resize(x, features[2].shape[2:], align_corners=True)
        for layer in self.layers:
            x = torch.cat([layer(x), x], 1)
        return self.classifier(self.dropout(x))


@register_model("dense_aspp", CARD)
class DenseASPP(SegmentationModel):
    """A dilated DenseNet with densely connected convolutions of rates 3, 6, 12, 18 and 24.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: ``densenet121``, ``densenet161`` (default), ``densenet169`` or ``densenet201``, of timm.
        pretrained: ImageNet weights of the trunk, without its last normalisation. Default no.
        output_stride: of the trunk, 8 or 16; features of stride 16 are resized to stride 8. Default 8.
        blocks: number of dense layers of each of the four blocks. Default the encoder's.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder or stride that there is not, or another number of blocks.

    Example:
        >>> import torch, segops
        >>> model = segops.models.DenseASPP(5, "densenet121", blocks=(1, 2, 2, 1)).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 19,
        encoder: str = "densenet161",
        *,
        pretrained: bool = False,
        output_stride: int = 8,
        blocks: Sequence[int] | None = None,
    ):
        _checks.choice("encoder", encoder, list(WIDTHS))
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride: expected 8 or 16, got {output_stride!r}")
        if blocks is not None and len(blocks) != 4:
            raise ValueError(f"blocks: expected four numbers of layers, got {len(blocks)}")
        how: dict[str, Any] = {} if blocks is None else {"block_config": tuple(blocks)}
        trunk = make_encoder(encoder, pretrained=pretrained, **how)
        dilate_densenet(trunk, output_stride)
        super().__init__(trunk, DenseASPPHead(trunk.channels[-1], num_classes, *WIDTHS[encoder]), align_corners=True)
