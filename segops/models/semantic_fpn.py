"""Semantic FPN: the semantic branch of Panoptic FPN, a light sum over a feature pyramid."""

from __future__ import annotations

from .model import SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fpn import FeaturePyramid, SumHead
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Panoptic Feature Pyramid Networks",
    authors="Kirillov, Girshick, He, Dollár",
    year=2019,
    venue="CVPR",
    url="https://arxiv.org/abs/1901.02446",
    family="encoder-decoder",
    canonical="ResNet-101 with a pyramid of 256 and a head of 128 channels with GroupNorm, as detectron2's "
    "SemSegFPNHead; for semantic segmentation alone, without the panoptic class of things",
    uncertain="Where the size of an image is no multiple of 32, each doubling goes to the size of the next finer "
    "level; detectron2 pads the image instead.",
    fidelity="structural",
    kernels=(),
    anchors=(
        Anchor(28_478_675, {"encoder": "resnet50", "num_classes": 19}, "arithmetic from detectron2's layers"),
        Anchor(47_470_803, {"encoder": "resnet101", "num_classes": 19}, "arithmetic from detectron2's layers"),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "pyramid_channels": 32, "channels": 32},
)


@register_model("semantic_fpn", CARD)
class SemanticFPN(SegmentationModel):
    """A trunk without holes, a feature pyramid, and the sum of its levels at stride 4.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a trunk of timm. Default ``resnet101``.
        pretrained: ImageNet weights of the trunk. Default no.
        pyramid_channels: of the levels of the pyramid. Default 256.
        channels: of the head, a multiple of 32. Default 128.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder that there is not, or channels that do not fit.

    Example:
        >>> import torch, segops
        >>> model = segops.models.SemanticFPN(5, "resnet18", pyramid_channels=32, channels=32).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 19,
        encoder: str = "resnet101",
        *,
        pretrained: bool = False,
        pyramid_channels: int = 256,
        channels: int = 128,
    ):
        trunk = make_encoder(encoder, pretrained=pretrained)
        super().__init__(
            FeaturePyramid(trunk, pyramid_channels),
            SumHead(pyramid_channels, num_classes, channels),
        )
