"""OCRNet: every pixel asks the classes, each described by the pixels that a first guess gives it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import nonlocal_attention
from .model import SegmentationModel, resize
from .parts.encoder import encoder as make_encoder
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Object-Contextual Representations for Semantic Segmentation",
    authors="Yuan, Chen, Wang",
    year=2020,
    venue="ECCV",
    url="https://arxiv.org/abs/1909.11065",
    family="context",
    canonical="the authors' openseg on a dilated ResNet-101 with a deep stem, whose convolutions have biases",
    uncertain="The authors' code for HRNet has no biases and makes its first guess from the same features as the rest; "
    "that trunk is not here. Some of their trainings had in-place batch normalisation, that is leaky ReLU; their "
    "configuration of ResNet-101 has ReLU, as the paper.",
    fidelity="structural",
    kernels=("nonlocal_attention", "atrous_conv2d"),
    anchors=(Anchor(57_988_838, {"encoder": "resnet101s", "num_classes": 19}, "openseg"),),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 32, "key_channels": 16},
)


class RegionContext(nn.Module):
    """What each pixel gathers from the regions of the classes, joined with the pixel's own features.

    Args:
        channels: C, of the features, before and after.
        key_channels: of queries, keys and values.

    Shape:
        features ``(N, C, h, w)`` and logits of the regions ``(N, K, h, w)`` to ``(N, C, h, w)``.
    """

    def __init__(self, channels: int, key_channels: int):
        super().__init__()

        def twice() -> nn.Sequential:
            return nn.Sequential(
                conv_norm_act(channels, key_channels, 1, bias=True),
                conv_norm_act(key_channels, key_channels, 1, bias=True),
            )

        self.query, self.key = twice(), twice()
        self.value = conv_norm_act(channels, key_channels, 1, bias=True)
        self.expand = conv_norm_act(key_channels, channels, 1, bias=True)
        self.fusion = nn.Sequential(*conv_norm_act(2 * channels, channels, 1, bias=True), nn.Dropout2d(0.05))
        self.scale = key_channels**-0.5

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """The features with their context."""
        share = logits.flatten(2).softmax(2)  # of a class over the pixels
        regions = (x.flatten(2) @ share.to(x.dtype).mT)[..., None]  # (N, C, K, 1)
        query, key, value = self.query(x), self.key(regions), self.value(regions)
        context = nonlocal_attention(query, key, value, scale=self.scale)
        return self.fusion(torch.cat([self.expand(context), x], 1))


class OCRHead(nn.Module):
    """Features to logits, and those of the first guess, both ``(N, K, h, w)``."""

    def __init__(self, in_channels: list[int], num_classes: int, channels: int, key_channels: int):
        super().__init__()
        *_, c4, c5 = in_channels
        self.guess = nn.Sequential(
            *conv_norm_act(c4, channels, bias=True), nn.Dropout2d(0.05), nn.Conv2d(channels, num_classes, 1)
        )
        self.conv = conv_norm_act(c5, channels, bias=True)
        self.context = RegionContext(channels, key_channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The features to both."""
        guess, x = self.guess(features[-2]), self.conv(features[-1])
        regions = resize(guess, x.shape[2:], align_corners=True)  # of another size at output stride 32 alone
        return self.classifier(self.context(x, regions)), guess


@register_model("ocrnet", CARD)
class OCRNet(SegmentationModel):
    """A dilated ResNet, soft regions of the classes from its third stage, and attention to them.

    The auxiliary head gives the regions, so that it is there in evaluation too; its logits are not detached. Training
    normalises the regions over all images and classes, K values for one image.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a ResNet of timm. Default ``resnet101s``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        channels: of features and regions. Default 512.
        key_channels: of the attention. Default 256.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"`` and ``"aux"``.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder or stride that there is not, or numbers that do not fit.

    Example:
        >>> import torch, segops
        >>> model = segops.models.OCRNet(5, "resnet18", channels=32, key_channels=16).eval()
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
        key_channels: int = 256,
    ):
        for name, number in (("num_classes", num_classes), ("channels", channels), ("key_channels", key_channels)):
            _checks.count(name, number, 1)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained, ceil_mode=True)
        super().__init__(trunk, OCRHead(trunk.channels, num_classes, channels, key_channels), align_corners=True)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Logits, and in training those of the first guess."""
        out, guess = self.classifier(self.backbone(image))
        return {"out": out, "aux": guess} if self.training else {"out": out}
