"""DeepLab v2: classifiers with holes of several sizes, summed, on images of several scales."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import aspp
from .model import Criterion, SegmentationModel, check_image, resize
from .parts.encoder import encoder as make_encoder
from .parts.vgg import VGG16
from .registry import Anchor, Card, register_model

SCALES = {"scale_1": 1.0, "scale_0.75": 0.75, "scale_0.5": 0.5}
CARD = Card(
    title="DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, "
    "and Fully Connected CRFs",
    authors="Chen, Papandreou, Kokkinos, Murphy, Yuille",
    year=2017,
    venue="PAMI",
    url="https://arxiv.org/abs/1606.00915",
    family="atrous",
    canonical="ResNet-101 in Caffe's form at stride 8, ASPP-L, maximum over three scales; without the dense CRF. "
    "encoder='vgg16' is the paper's ASPP-L on VGG16",
    uncertain="Images, logits and labels of other scales are interpolated with corners aligned, as Caffe does: 321 "
    "pixels become 241 and 161. A known PyTorch version has half-pixel centres instead. That VGG16 has "
    "one scale is from memory.",
    fidelity="structural",
    kernels=("atrous_conv2d", "aspp"),
    anchors=(
        Anchor(44_048_532, {"encoder": "resnet101", "num_classes": 21}, "a PyTorch version of the authors' weights"),
        Anchor(37_877_652, {"encoder": "vgg16", "num_classes": 21}, "a repost of the authors' definition of layers"),
    ),
    small={"encoder": "resnet18", "num_classes": 5},
)


class SummedASPP(nn.Module):
    """3 x 3 convolutions at several rates, with bias, in one call of :func:`segops.aspp`: to logits, which are summed;
    or, VGG16's, to ``channels``, and each branch has two layers more before the sum."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int], channels: int | None = None):
        super().__init__()
        _checks.count("num_classes", num_classes, 1)
        self.rates = [_checks.count(f"rates[{i}]", rate, 1) for i, rate in enumerate(rates)]
        out_channels = num_classes if channels is None else channels
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate) for rate in self.rates
        )
        self.rest = nn.ModuleList(_fc7_fc8(channels, num_classes) for _ in self.rates if channels is not None)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        branches: list[Any] = list(self.branches)
        weights, biases = [branch.weight for branch in branches], [branch.bias for branch in branches]
        combine = "list" if len(self.rest) else "sum"
        outs: Any = aspp(features[-1], weights, biases, self.rates, combine=combine)
        if combine == "sum":
            return outs
        return reduce(torch.add, (rest(out) for rest, out in zip(self.rest, outs, strict=True)))


def _fc7_fc8(channels: int, num_classes: int) -> nn.Sequential:
    fc7, fc8 = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, num_classes, 1)
    return nn.Sequential(nn.ReLU(), nn.Dropout(0.5), fc7, nn.ReLU(), nn.Dropout(0.5), fc8)


@register_model("deeplab_v2", CARD)
class DeepLabV2(SegmentationModel):
    """One net on the image at scales 1, 0.75 and 0.5; the result is the maximum of their logits.

    The paper puts a dense CRF on the result: :class:`segops.nn.DenseCRF` on logits of the size of the image.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        encoder: a ResNet of timm, or ``vgg16``. Default ``resnet101``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32; of VGG16, 8. Default 8.
        rates: of the convolutions that are summed. Default (6, 12, 18, 24), the paper's ASPP-L.
        multi_scale: the three scales, or the first alone. Default yes, with VGG16 no.
        frozen_norm: batch normalisation keeps its statistics and parameters in training, as in the paper. Default
            where ``pretrained``; without that the statistics are those of no data.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict: ``"out"`` of that size, and, for the loss,
        ``"fused"``, ``"scale_1"``, ``"scale_0.75"`` and ``"scale_0.5"`` at their own resolutions, to which labels are
        shrunk.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder or stride that there is not, or a rate below 1.

    Example:
        >>> import torch, segops
        >>> model = segops.models.DeepLabV2(5, "resnet18").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 5, 65, 97])
    """

    loss_weights: ClassVar[dict[str, float]] = {"fused": 1.0, "scale_1": 1.0, "scale_0.75": 1.0, "scale_0.5": 1.0}

    def __init__(
        self,
        num_classes: int = 21,
        encoder: str = "resnet101",
        *,
        pretrained: bool = False,
        output_stride: int = 8,
        rates: Sequence[int] = (6, 12, 18, 24),
        multi_scale: bool | None = None,
        frozen_norm: bool | None = None,
    ):
        vgg = encoder == "vgg16"
        if vgg:
            if output_stride != 8:
                raise ValueError(f"output_stride: expected 8 of vgg16, got {output_stride!r}")
            pools = [(3, 2)] * 3 + [(3, 1)] * 2
            trunk: Any = VGG16(pools=pools, dilations=(1, 1, 1, 1, 2), pretrained=pretrained)
        else:
            trunk = make_encoder(
                encoder, output_stride=output_stride, pretrained=pretrained, convention="caffe", ceil_mode=True
            )
        head = SummedASPP(trunk.channels[-1], num_classes, rates, 1024 if vgg else None)
        super().__init__(trunk, head, align_corners=True)
        self.multi_scale = not vgg if multi_scale is None else multi_scale
        self.frozen_norm = pretrained if frozen_norm is None else frozen_norm
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval().requires_grad_(False)

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> DeepLabV2:
        """As of any module; frozen normalisation stays as in evaluation."""
        super().train(mode)
        if self.frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maximum over the scales, at the resolution of the first; in training those of the scales, too."""
        maps = {"scale_1": self.classifier(self.backbone(image))}
        if self.multi_scale:
            for name in ("scale_0.75", "scale_0.5"):
                size = [int((n - 1) * SCALES[name]) + 1 for n in image.shape[-2:]]
                maps[name] = self.classifier(self.backbone(resize(image, size, self.align_corners)))
        size = maps["scale_1"].shape[-2:]
        fused = reduce(torch.maximum, (resize(m, size, self.align_corners) for m in maps.values()))
        return {"out": fused, "fused": fused, **maps} if self.training else {"out": fused}

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """image (N, 3, H, W) to logits (N, num_classes, H, W); in training a dict with them under "out"."""
        maps = self.logits(check_image(image))
        out = resize(maps["out"], image.shape[-2:], self.align_corners)
        return {**maps, "out": out} if self.training else out

    def term(self, name: str, maps: dict[str, Tensor], target: Tensor, criterion: Criterion) -> Tensor:
        """The loss of a map against the labels nearest to its positions."""
        rows, columns = (
            torch.linspace(0, full - 1, own, device=target.device).round().long()
            for full, own in zip(target.shape[-2:], maps[name].shape[-2:], strict=True)
        )
        return criterion(maps[name], target[:, rows][:, :, columns])
