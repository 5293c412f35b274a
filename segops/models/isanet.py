"""ISANet: attention among pixels far from each other on a lattice, then among those of a block."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from ..nn import InterlacedAttention
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Interlaced Sparse Self-Attention for Semantic Segmentation",
    authors="Huang, Yuan, Guo, Zhang, Chen, Wang",
    year=2019,
    venue="arXiv",
    url="https://arxiv.org/abs/1907.12273",
    family="attention",
    canonical="openseg's: ResNet-101 with a deep stem, blocks of 8 x 8",
    uncertain="openseg pads maps that blocks do not divide with zeros, which take part in the attention; so does this.",
    fidelity="structural",
    kernels=("interlaced_attention", "atrous_conv2d"),
    anchors=(
        Anchor(59_167_718, {"num_classes": 19}, "openseg.pytorch"),
        Anchor(54_438_355, {"num_classes": 19, "aux": False}, "openseg.pytorch"),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 16, "down_factor": 4},
)


class ISAHead(nn.Module):
    """Reduce, attend, classify."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, down_factor: int):
        super().__init__()
        self.reduce = conv_norm_act(in_channels, channels)
        self.attention = InterlacedAttention(channels, down_factor=down_factor)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        return self.classifier(self.attention(self.reduce(features[-1])))


@register_model("isanet", CARD)
class ISANet(SegmentationModel):
    """A dilated ResNet and interlaced sparse self-attention.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a ResNet of timm. Default ``resnet101s``, with the deep stem.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: of the attention. Default 512.
        down_factor: rows and columns of a block. Default 8.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride or number that there can't be.

    Example:
        >>> import torch, segops
        >>> model = segops.models.ISANet(5, "resnet18", channels=16, down_factor=4).eval()
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
        down_factor: int = 8,
        aux: bool = True,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 2)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, ceil_mode=True)
        *_, c4, c5 = trunk.channels
        dsn = FCNHead(c4, num_classes, channels, index=-2, dropout=0.05, whole_channels=True) if aux else None
        super().__init__(trunk, ISAHead(c5, num_classes, channels, down_factor), dsn, align_corners=True)
