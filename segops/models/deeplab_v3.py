"""DeepLab v3: atrous spatial pyramid pooling on a dilated ResNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import _checks
from ..nn import ASPP
from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

# Channels of the pooling, and dropout after it.
VARIANTS = {"torchvision": (256, 0.5), "paper": (256, 0.0), "mmseg": (512, 0.1)}
CARD = Card(
    title="Rethinking Atrous Convolution for Semantic Image Segmentation",
    authors="Chen, Papandreou, Schroff, Adam",
    year=2017,
    venue="arXiv",
    url="https://arxiv.org/abs/1706.05587",
    family="atrous",
    canonical="torchvision's deeplabv3_resnet50 and deeplabv3_resnet101, whose state_dict loads",
    uncertain="The paper's variant follows a description of it; its multi-grid is taken as factors of the dilation of "
    "the stage, in the first block too. Torchvision's rates are (12, 24, 36) at all strides; ours follow it.",
    fidelity="verified",
    kernels=("atrous_conv2d", "aspp"),
    anchors=(
        Anchor(42_004_074, {"encoder": "resnet50", "num_classes": 21}, "torchvision"),
        Anchor(39_638_869, {"encoder": "resnet50", "num_classes": 21, "aux": False}, "torchvision"),
        Anchor(60_996_202, {"encoder": "resnet101", "num_classes": 21}, "torchvision"),
        Anchor(58_630_997, {"encoder": "resnet101", "num_classes": 21, "aux": False}, "torchvision"),
        Anchor(
            58_040_661,
            {"encoder": "resnet101", "num_classes": 21, "variant": "paper"},
            "torchvision's without aux and without the extra 3 x 3 convolution, 590,336",
        ),
        Anchor(68_113_030, {"encoder": "resnet50c", "num_classes": 19, "variant": "mmseg"}, "mmseg's layers"),
    ),
    small={"encoder": "resnet18", "num_classes": 5},
)


class DeepLabV3Head(nn.Sequential):
    """ASPP, its branches joined by 3 x 3 in mmseg's; torchvision's 3 x 3 convolution; the classifier."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int], variant: str):
        _checks.count("num_classes", num_classes, 1)
        channels, dropout = VARIANTS[variant]
        pooling = ASPP(in_channels, rates, channels, dropout=dropout)
        if variant == "mmseg":
            pooling.project[0] = nn.Conv2d((len(rates) + 2) * channels, channels, 3, padding=1, bias=False)
        between = conv_norm_act(channels, channels) if variant == "torchvision" else ()
        super().__init__(pooling, *between, nn.Conv2d(channels, num_classes, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        return super().forward(features[-1])


@register_model("deeplab_v3", CARD)
class DeepLabV3(SegmentationModel):
    """A dilated ResNet with atrous spatial pyramid pooling: holes of several sizes, and the mean of the image.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        encoder: a trunk of timm; the paper's variant takes ResNets. Default ``resnet50``.
        variant: ``"torchvision"`` (default); ``"paper"``: with multi-grid, without the 3 x 3 convolution after the
            pooling, dropout and the auxiliary head; ``"mmseg"``: with 512 channels, joined by a 3 x 3 convolution
            (its branches are concatenated in another order there).
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32; the rates are 96 / stride times (1, 2, 3). Default 8, the paper's 16.
        multi_grid: factors of the dilations of a ResNet's last stage, one for each block. Default none, the paper's
            (1, 2, 4).
        aux: the auxiliary head of training. Default yes, the paper's no.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``. Training needs N >= 2: the
        branch of the mean normalises N values.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder, variant, stride or multi_grid that there is not.

    Example:
        >>> import torch, segops
        >>> model = segops.models.DeepLabV3(5, "resnet18").eval()
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
        output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        aux: bool | None = None,
    ):
        paper = _checks.choice("variant", variant, [*VARIANTS]) == "paper"
        if output_stride is None:
            output_stride = 16 if paper else 8
        if multi_grid is None and paper:
            multi_grid = (1, 2, 4)
        trunk = make_encoder(
            encoder,
            output_stride=output_stride,
            pretrained=pretrained,
            convention="semseg" if paper else "torchvision",
            multi_grid=multi_grid,
        )
        *_, c4, c5 = trunk.channels
        rates = [96 // output_stride * i for i in (1, 2, 3)]
        head = DeepLabV3Head(c5, num_classes, rates, variant)
        with_aux = not paper if aux is None else aux
        super().__init__(trunk, head, FCNHead(c4, num_classes, index=-2) if with_aux else None)
