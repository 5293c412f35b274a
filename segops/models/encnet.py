"""EncNet: a description of the whole scene says which channels matter, and has to know which classes there are."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from ..nn import Encoding
from .model import Criterion, SegmentationModel, resize
from .parts.encoder import encoder as make_encoder
from .parts.fcn_head import FCNHead
from .parts.layers import conv_norm_act
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Context Encoding for Semantic Segmentation",
    authors="Zhang, Dana, Shi, Zhang, Wang, Tyagi, Agrawal",
    year=2018,
    venue="CVPR",
    url="https://arxiv.org/abs/1803.08904",
    family="context",
    canonical="the authors' PyTorch-Encoding on ResNet-101 with a deep stem, for PASCAL-Context, with lateral "
    "features; mmsegmentation's has the same layers on resnet50c and without them",
    uncertain="The paper sums the encoded residuals over the codewords and has an SE loss on the third stage too; the "
    "authors' code, and this, take their mean and have the one. The weight of the auxiliary loss is 0.2 there and 0.4 "
    "in mmsegmentation.",
    fidelity="structural",
    kernels=("encoding", "atrous_conv2d"),
    anchors=(
        Anchor(43_915_217, {"encoder": "resnet50s", "num_classes": 59}, "PyTorch-Encoding"),
        Anchor(41_540_246, {"encoder": "resnet50s", "num_classes": 59, "aux": False}, "PyTorch-Encoding"),
        Anchor(62_907_345, {"encoder": "resnet101s", "num_classes": 59}, "PyTorch-Encoding"),
        Anchor(60_532_374, {"encoder": "resnet101s", "num_classes": 59, "aux": False}, "PyTorch-Encoding"),
        Anchor(36_164_578, {"encoder": "resnet50s", "num_classes": 150, "lateral": False}, "PyTorch-Encoding"),
        Anchor(55_156_706, {"encoder": "resnet101s", "num_classes": 150, "lateral": False}, "PyTorch-Encoding"),
        Anchor(
            35_891_961,
            {"encoder": "resnet50c", "num_classes": 19, "lateral": False},
            "arithmetic from mmsegmentation's layers",
        ),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "channels": 32, "num_codes": 4},
)


class EncHead(nn.Module):
    """Features to logits ``(N, K, h, w)`` and the presence of classes, logits ``(N, K)``."""

    def __init__(self, in_channels: list[int], num_classes: int, channels: int, num_codes: int, lateral: bool):
        super().__init__()
        *_, c3, c4, c5 = in_channels
        self.conv = conv_norm_act(c5, channels)
        widths = (c3, c4) if lateral else ()
        self.lateral = nn.ModuleList(conv_norm_act(width, channels, 1) for width in widths)
        self.fusion = conv_norm_act(3 * channels, channels) if lateral else nn.Identity()
        self.project = conv_norm_act(channels, channels, 1)
        self.encoding = Encoding(channels, num_codes)
        self.norm = nn.BatchNorm1d(num_codes)
        self.attention = nn.Linear(channels, channels)
        self.presence = nn.Linear(channels, num_classes)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The features to both."""
        x = self.conv(features[-1])
        sides = [layer(side) for layer, side in zip(self.lateral, features[-3:-1], strict=False)]
        sides = [resize(side, x.shape[2:], align_corners=True) for side in sides]
        x = self.fusion(torch.cat([x, *sides], 1))
        scene = self.norm(self.encoding(self.project(x))).relu().mean(1)
        weight = self.attention(scene).sigmoid()[:, :, None, None]
        return self.classifier((x + x * weight).relu()), self.presence(scene)


@register_model("encnet", CARD)
class EncNet(SegmentationModel):
    """A dilated ResNet, an encoding of its features, and what it says of them.

    Args:
        num_classes: K. Default 59, PASCAL-Context's.
        encoder: a trunk of timm. Default ``resnet101s``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        aux: the auxiliary head of training. Default yes.
        lateral: whether features of the two stages before the last are joined. Default yes; the authors do so for
            PASCAL's data sets alone.
        channels: of the head. Default 512.
        num_codes: codewords. Default 32.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict: ``"out"``, ``"aux"``, and ``"se"`` ``(N, K)``, logits
        of which classes the image has anywhere.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder or stride that there is not, or numbers that do not fit.

    Example:
        >>> import torch, segops
        >>> model = segops.models.EncNet(5, "resnet18", channels=32)
        >>> maps = model(torch.randn(2, 3, 64, 96))
        >>> {name: tuple(m.shape) for name, m in maps.items()}
        {'out': (2, 5, 64, 96), 'se': (2, 5), 'aux': (2, 5, 64, 96)}
        >>> loss = model.loss(maps, torch.randint(5, (2, 64, 96)))
    """

    loss_weights: ClassVar[dict[str, float]] = {"out": 1.0, "se": 0.2, "aux": 0.2}

    def __init__(
        self,
        num_classes: int = 59,
        encoder: str = "resnet101s",
        *,
        pretrained: bool = False,
        output_stride: int = 8,
        aux: bool = True,
        lateral: bool = True,
        channels: int = 512,
        num_codes: int = 32,
    ):
        _checks.count("num_classes", num_classes, 1)
        _checks.count("channels", channels, 1)
        trunk = make_encoder(encoder, output_stride=output_stride, pretrained=pretrained)
        super().__init__(
            trunk,
            EncHead(trunk.channels, num_classes, channels, num_codes, lateral),
            FCNHead(trunk.channels[-2], num_classes, index=-2) if aux else None,
            align_corners=True,
        )

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Logits, and in training the presence of classes and the auxiliary logits."""
        features = self.backbone(image)
        out, presence = self.classifier(features)
        if not self.training:
            return {"out": out}
        maps = {"out": out, "se": presence}
        if self.aux_classifier is not None:
            maps["aux"] = self.aux_classifier(features)
        return maps

    def term(self, name: str, maps: dict[str, Tensor], target: Tensor, criterion: Criterion) -> Tensor:
        """Of the presence of classes: binary cross entropy, whatever the criterion of pixels is."""
        if name != "se":
            return criterion(maps[name], target)
        return F.binary_cross_entropy_with_logits(
            maps[name], presence(target, maps[name].shape[1]).to(maps[name].dtype)
        )


def presence(target: Tensor, num_classes: int) -> Tensor:
    """Which classes an image has: labels (N, H, W) to bool (N, K); labels that are no class, ignored ones, add none."""
    labels = target.flatten(1).long()
    labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    found = labels.new_zeros(labels.shape[0], num_classes + 1, dtype=torch.bool)
    return found.scatter(1, labels, True)[:, :num_classes]
