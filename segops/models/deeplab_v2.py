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
    canonical="ResNet-101 in Caffe's form at stride 8, ASPP-L, maximum over three scales; without the dense CRF",
    uncertain="Images, logits and labels of other scales are interpolated with corners aligned, as Caffe does: 321 "
    "pixels become 241 and 161. A known PyTorch version has half-pixel centres instead.",
    fidelity="structural",
    kernels=("atrous_conv2d", "aspp"),
    anchors=(
        Anchor(44_048_532, {"encoder": "resnet101", "num_classes": 21}, "a PyTorch version of the authors' weights"),
    ),
    small={"encoder": "resnet18", "num_classes": 5},
)


class SummedASPP(nn.Module):
    """3 x 3 convolutions to logits at several rates, with bias; their sum, in one call of :func:`segops.aspp`."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int]):
        super().__init__()
        _checks.count("num_classes", num_classes, 1)
        self.rates = [_checks.count(f"rates[{i}]", rate, 1) for i, rate in enumerate(rates)]
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in self.rates
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        branches: list[Any] = list(self.branches)
        weights, biases = [branch.weight for branch in branches], [branch.bias for branch in branches]
        out: Any = aspp(features[-1], weights, biases, self.rates, combine="sum")
        return out


@register_model("deeplab_v2", CARD)
class DeepLabV2(SegmentationModel):
    """One net on the image at scales 1, 0.75 and 0.5; the result is the maximum of their logits.

    The paper puts a dense CRF on the result: :class:`segops.nn.DenseCRF` on logits of the size of the image.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        encoder: a ResNet of timm. Default ``resnet101``.
        pretrained: ImageNet weights of the trunk. Default no.
        output_stride: 8, 16 or 32. Default 8.
        rates: of the convolutions that are summed. Default (6, 12, 18, 24), the paper's ASPP-L.
        multi_scale: the three scales, or the first alone. Default yes.
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
        multi_scale: bool = True,
        frozen_norm: bool | None = None,
    ):
        trunk = make_encoder(
            encoder, output_stride=output_stride, pretrained=pretrained, convention="caffe", ceil_mode=True
        )
        super().__init__(trunk, SummedASPP(trunk.channels[-1], num_classes, rates), align_corners=True)
        self.multi_scale = multi_scale
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
