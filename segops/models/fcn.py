"""FCN on a ResNet: one classifier on the last features, as torchvision has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Fully Convolutional Networks for Semantic Segmentation",
    authors="Long, Shelhamer, Darrell",
    year=2015,
    venue="CVPR",
    url="https://arxiv.org/abs/1411.4038",
    family="fully convolutional",
    canonical="torchvision's fcn_resnet50 and fcn_resnet101, whose state_dict loads",
    uncertain="",
    fidelity="verified",
    kernels=("atrous_conv2d",),
    anchors=(
        Anchor(35_322_218, {"encoder": "resnet50", "num_classes": 21}, "torchvision"),
        Anchor(32_957_013, {"encoder": "resnet50", "num_classes": 21, "aux": False}, "torchvision"),
        Anchor(54_314_346, {"encoder": "resnet101", "num_classes": 21}, "torchvision"),
        Anchor(51_949_141, {"encoder": "resnet101", "num_classes": 21, "aux": False}, "torchvision"),
        Anchor(49_497_734, {"encoder": "resnet50c", "num_classes": 19, "variant": "mmseg"}, "mmseg's layers"),
    ),
    small={"encoder": "resnet18", "num_classes": 5},
)


VARIANTS = ("torchvision", "mmseg")


class WideFCNHead(nn.Module):
    """mmseg's: two 3 x 3 convolutions, a third over their result and what came in, the classifier."""

    def __init__(self, in_channels: int, num_classes: int, channels: int = 512):
        super().__init__()
        _checks.count("num_classes", num_classes, 1)
        self.convs = nn.Sequential(conv_norm_act(in_channels, channels), conv_norm_act(channels, channels))
        self.merge = conv_norm_act(in_channels + channels, channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        x = features[-1]
        return self.classifier(self.dropout(self.merge(torch.cat([x, self.convs(x)], 1))))


@register_model("fcn", CARD)
class FCN(SegmentationModel):
    """A dilated ResNet with a plain classifier.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        encoder: a trunk of timm. Default ``resnet50``.
        variant: ``"torchvision"`` (default), or ``"mmseg"`` with its wider head.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder or stride that there is not.

    Example:
        >>> import torch, segops
        >>> model = segops.models.FCN(5, "resnet18").eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 21,
        encoder: str = "resnet50",
        *,
        variant: str = "torchvision",
        pretrained: bool = False,
        output_stride: int = 8,
        aux: bool = True,
    ):
        head = WideFCNHead if _checks.choice("variant", variant, VARIANTS) == "mmseg" else FCNHead
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained)
        *_, c4, c5 = trunk.channels
        super().__init__(trunk, head(c5, num_classes), FCNHead(c4, num_classes, index=-2) if aux else None)
