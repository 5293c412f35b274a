"""PSPNet: averages of the features over grids of several sizes, as context of every position."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .parts.pyramid_pooling import PyramidPooling
from .registry import Anchor, Card, register_model

_COUNTED = "the authors' definition of layers and their PyTorch code, which agree"
CARD = Card(
    title="Pyramid Scene Parsing Network",
    authors="Zhao, Shi, Qi, Wang, Jia",
    year=2017,
    venue="CVPR",
    url="https://arxiv.org/abs/1612.01105",
    family="pyramid",
    canonical="the authors' PyTorch version: a ResNet with deep stem, all blocks of a dilated stage with its dilation, "
    "stride in the 3 x 3 convolution",
    uncertain="The authors' first version, in Caffe, strides in the 1 x 1 convolution, concatenates the grids from the "
    "finest to the coarsest, and averages windows of a size fixed for images of 473 x 473; other sizes differ.",
    fidelity="structural",
    kernels=("atrous_conv2d", "pyramid_pool"),
    anchors=(
        Anchor(46_782_550, {"encoder": "resnet50s", "num_classes": 150, "aux": False}, _COUNTED),
        Anchor(65_708_501, {"encoder": "resnet101s", "num_classes": 21, "aux": False}, _COUNTED),
        Anchor(65_707_475, {"encoder": "resnet101s", "num_classes": 19, "aux": False}, _COUNTED),
        Anchor(46_716_373, {"encoder": "resnet50s", "num_classes": 21, "aux": False}, "the authors' PyTorch code"),
        Anchor(49_081_578, {"encoder": "resnet50s", "num_classes": 21}, "the authors' PyTorch code"),
        Anchor(
            48_975_494, {"encoder": "resnet50c", "num_classes": 19}, "pspnet_r50-d8 of mmsegmentation, by its layers"
        ),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 32},
)


class PSPHead(nn.Sequential):
    """Pyramid pooling, a 3 x 3 convolution over the features and their context, the classifier."""

    def __init__(self, in_channels: int, num_classes: int, channels: int):
        _checks.count("num_classes", num_classes, 1)
        pooling = PyramidPooling(in_channels)
        super().__init__(
            pooling,
            *conv_norm_act(pooling.out_channels, channels),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        return super().forward(features[-1])


@register_model("pspnet", CARD)
class PSPNet(SegmentationModel):
    """A dilated ResNet with pyramid pooling. Images of 8 k + 1 rows and columns suit its interpolation.

    Args:
        num_classes: K. Default 150, ADE20K's.
        encoder: a ResNet of timm. Default ``resnet50s``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: between pooling and classifier. Default 512.
        aux: the auxiliary head of training. Default yes.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``. Training needs N >= 2: the
        grid of one bin normalises N values.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder or stride that there is not, or a number below 1.

    Example:
        >>> import torch, segops
        >>> model = segops.models.PSPNet(5, "resnet18", channels=32).eval()
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
        aux: bool = True,
    ):
        _checks.count("channels", channels, 1)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, convention="semseg")
        *_, c4, c5 = trunk.channels
        super().__init__(
            trunk,
            PSPHead(c5, num_classes, channels),
            FCNHead(c4, num_classes, index=-2, whole_channels=True) if aux else None,
            align_corners=True,
        )
