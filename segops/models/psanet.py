"""PSANet: each position predicts for all others what they are to it, and what it is to them."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from ..nn import PSA
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="PSANet: Point-wise Spatial Attention Network for Scene Parsing",
    authors="Zhao, Zhang, Liu, Shi, Loy, Lin, Jia",
    year=2018,
    venue="ECCV",
    url="https://openaccess.thecvf.com/content_ECCV_2018/html/Hengshuang_Zhao_PSANet_Point-wise_Spatial_ECCV_2018_paper.html",
    family="attention",
    canonical="semseg's: ResNet with a deep stem, both directions, masks of 59 x 59 for crops of 465 pixels",
    uncertain="",
    fidelity="structural",
    kernels=("psa_collect", "psa_distribute", "atrous_conv2d"),
    anchors=(
        Anchor(50_875_478, {"num_classes": 150, "aux": False}, "semseg"),
        Anchor(69_867_606, {"num_classes": 150, "encoder": "resnet101s", "aux": False}, "official Caffe network"),
        Anchor(69_801_429, {"num_classes": 21, "encoder": "resnet101s", "aux": False}, "semseg"),
        Anchor(
            74_346_963,
            {"num_classes": 19, "encoder": "resnet101s", "mask_size": 89, "aux": False},
            "official Caffe network",
        ),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 16, "mask_size": 9},
)


class PSAHead(nn.Sequential):
    """Attention, which is joined to what came in; a 3 x 3 convolution; the classifier."""

    def __init__(self, in_channels: int, num_classes: int, channels: int, mask_size: int):
        super().__init__(
            PSA(in_channels, channels, mask_size=mask_size),
            *conv_norm_act(2 * in_channels, channels),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        return super().forward(features[-1])


@register_model("psanet", CARD)
class PSANet(SegmentationModel):
    """A dilated ResNet and point-wise spatial attention. Images of 8 k + 1 rows and columns suit its interpolation.

    Args:
        num_classes: K. Default 150, ADE20K's.
        encoder: a ResNet of timm. Default ``resnet50s``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: of the attention and before the classifier. Default 512.
        mask_size: rows and columns of the masks, odd. Default 59, which covers all pairs of positions of images of up
            to 473 pixels; 89 up to 713.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, stride or number that there can't be.

    Example:
        >>> import torch, segops
        >>> model = segops.models.PSANet(5, "resnet18", channels=16, mask_size=9).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 5, 65, 97])
    """

    def __init__(
        self,
        num_classes: int = 150,
        encoder: str = "resnet50s",
        *,
        pretrained: bool = False,
        output_stride: int = 8,
        channels: int = 512,
        mask_size: int = 59,
        aux: bool = True,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 1)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, convention="semseg")
        *_, c4, c5 = trunk.channels
        aux_head = FCNHead(c4, num_classes, index=-2, whole_channels=True) if aux else None
        super().__init__(trunk, PSAHead(c5, num_classes, channels, mask_size), aux_head, align_corners=True)
