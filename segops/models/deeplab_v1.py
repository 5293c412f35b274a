"""DeepLab's first version: VGG16 with holes and a wide view, and a dense CRF on what comes out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import _checks
from ..data import IMAGENET_MEAN, IMAGENET_STD
from ..nn import AtrousConv2d, DenseCRF
from .model import Criterion, SegmentationModel
from .parts.colours import Colours
from .parts.vgg import CHANNELS, VGG16, load_imagenet
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
    authors="Chen, Papandreou, Kokkinos, Murphy, Yuille",
    year=2015,
    venue="ICLR",
    url="https://arxiv.org/abs/1412.7062",
    family="atrous",
    canonical="DeepLab-CRF-LargeFOV; the first, wider heads by head, the CRF by crf=True",
    uncertain="The average pooling before the head of the large view is from memory of the released files. The CRF is "
    "normalised symmetrically, as pydensecrf does it; the authors' program may not do that. Its widths are what others "
    "quote from the authors. The variant that joins features of several scales is left out.",
    fidelity="structural",
    kernels=("atrous_conv2d", "dense_crf"),
    anchors=(
        Anchor(20_505_429, {"num_classes": 21}, "paper, every layer"),
        Anchor(134_346_581, {"num_classes": 21, "head": "7x7"}, "paper, every layer"),
        Anchor(65_140_565, {"num_classes": 21, "head": "4x4"}, "paper, every layer"),
    ),
    small={"num_classes": 5, "channels": (8, 8, 16, 16, 16), "fc_channels": 32},
)
# Kernel and dilation of the convolution that fc6 became, and channels after it and after fc7.
HEADS = {"large_fov": (3, 12, 1024), "4x4": (4, 4, 4096), "7x7": (7, 4, 4096)}
STRIDE = 8


class _Head(nn.Sequential):
    """The last features to logits: three layers that were fully connected."""

    def __init__(self, in_channels: int, num_classes: int, kernel: int, dilation: int, channels: int, average: bool):
        fc6 = AtrousConv2d(in_channels, channels, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation)
        fc7, fc8 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(fc8.weight, std=0.01)
        layers: list[nn.Module] = [nn.AvgPool2d(3, 1, 1)] if average else []
        layers += [fc6, nn.ReLU(), nn.Dropout(0.5), fc7, nn.ReLU(), nn.Dropout(0.5), fc8]
        super().__init__(*layers)
        self.fc = fc6, fc7

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(features[-1])


@register_model("deeplab_v1", CARD)
class DeepLabV1(SegmentationModel):
    """VGG16 at stride 8: the last two poolings keep the size, what follows has holes.

    Images are RGB, less ``mean`` and divided by ``std``. Training compares every eighth pixel of every eighth row, as
    the paper does; with sides of 8 n + 1 pixels, its 321, those are the logits before interpolation.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        pretrained: ImageNet weights of VGG16. Default no.
        head: ``"large_fov"``, 3 x 3 at rate 12 (default), or the first ones, ``"7x7"`` and ``"4x4"`` at rate 4.
        crf: refine the logits by the dense CRF of the image, in evaluation. Default no.
        mean, std: what was taken out of images from 0 to 1, and by what they were divided, with which the CRF gets the
            colours back. Default ImageNet's.
        channels: of the five stages of the trunk. Default VGG's.
        fc_channels: of the head. Default 1024, for the first heads 4096.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ImportError: for ``pretrained`` without timm.
        ValueError: for a head that there is not.

    Example:
        >>> import torch, segops
        >>> thin = {"channels": (8, 8, 16, 16, 16), "fc_channels": 32}
        >>> model = segops.models.DeepLabV1(5, crf=True, **thin).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 5, 65, 97])
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        pretrained: bool = False,
        head: str = "large_fov",
        crf: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels: Sequence[int] = CHANNELS,
        fc_channels: int | None = None,
    ):
        _checks.count("num_classes", num_classes, 1)
        kernel, dilation, width = HEADS[_checks.choice("head", head, tuple(HEADS))]
        pools = [(3, 2)] * 3 + [(3, 1)] * 2
        trunk = VGG16(channels=channels, pools=pools, dilations=(1, 1, 1, 1, 2))
        width = width if fc_channels is None else fc_channels
        classifier = _Head(channels[-1], num_classes, kernel, dilation, width, head == "large_fov")
        if pretrained:
            load_imagenet(trunk, *(classifier.fc if head == "7x7" else ()))
        super().__init__(trunk, classifier, align_corners=True)
        self.colours = Colours(mean, std)
        self.crf = (
            None
            if not crf
            else DenseCRF(
                num_classes,
                iterations=10,
                spatial_sigma=3,
                spatial_weight=3,
                bilateral_sigma_xy=121,
                bilateral_sigma_rgb=5,
                bilateral_weight=4,
                learn_weights=False,
                learn_compatibility=False,
            )
        )

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """image (N, 3, H, W) to logits, in evaluation those of the CRF if there is one."""
        out = super().forward(image)
        if self.crf is None or isinstance(out, dict):
            return out
        return self.crf(out, self.colours(image))

    def term(self, name: str, maps: dict[str, Tensor], target: Tensor, criterion: Criterion) -> Tensor:
        """The loss at stride 8."""
        return criterion(maps[name][..., ::STRIDE, ::STRIDE], target[..., ::STRIDE, ::STRIDE])
