"""PointRend on Semantic FPN: coarse logits, and a small network that is asked again where they are uncertain."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import point_sample, subdivide, uncertain_points
from .model import Criterion, SegmentationModel
from .parts.encoder import encoder as make_encoder
from .parts.fpn import FeaturePyramid, SumHead
from .registry import Anchor, Card, register_model

CARD = Card(
    title="PointRend: Image Segmentation as Rendering",
    authors="Kirillov, Wu, He, Girshick",
    year=2020,
    venue="CVPR",
    url="https://arxiv.org/abs/1912.08193",
    family="refinement",
    canonical="Semantic FPN on ResNet-101 with detectron2's point head for Cityscapes, whose coarse logits enter its "
    "first layer alone",
    uncertain="The paper and mmsegmentation give the coarse logits to every layer of the point head, detectron2 does "
    "so only on request: coarse_each_layer. Where the size of an image is no multiple of 4, the refined map is "
    "interpolated to it; detectron2 pads the image instead.",
    fidelity="structural",
    kernels=("point_sample", "uncertain_points", "subdivide"),
    anchors=(
        Anchor(47_677_926, {"encoder": "resnet101", "num_classes": 19}, "arithmetic from detectron2's layers"),
        Anchor(
            47_688_015,
            {"encoder": "resnet101", "num_classes": 19, "coarse_each_layer": True},
            "arithmetic from the layers of Semantic FPN and mmsegmentation's point head",
        ),
    ),
    small={
        "encoder": "resnet18",
        "num_classes": 5,
        "pyramid_channels": 32,
        "channels": 32,
        "point_channels": 32,
        "train_points": 64,
    },
)


class PointHead(nn.Module):
    """Three layers and a predictor, the same for every point.

    Shape:
        fine features ``(N, F, P)`` and coarse logits ``(N, K, P)`` to logits ``(N, K, P)``.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, coarse_each_layer: bool = False):
        super().__init__()
        again = num_classes if coarse_each_layer else 0
        widths = [in_channels + num_classes] + 2 * [channels + again]
        self.layers = nn.ModuleList(nn.Conv1d(width, channels, 1) for width in widths)
        self.predictor = nn.Conv1d(channels + again, num_classes, 1)
        self.coarse_each_layer = coarse_each_layer
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name == "predictor.weight":
                nn.init.normal_(parameter, std=0.001)
            else:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Logits of the points."""
        x = torch.cat([fine, coarse], 1)
        for layer in self.layers:
            x = layer(x).relu()
            x = torch.cat([x, coarse], 1) if self.coarse_each_layer else x
        return self.predictor(x)


@register_model("pointrend", CARD)
class PointRend(SegmentationModel):
    """Semantic FPN, and points that look at its finest level.

    Training gives the coarse logits, and those of points that are mostly uncertain; torch's own generator draws the
    points, so that ``torch.manual_seed`` repeats a step. Evaluation doubles the coarse map, replaces its most uncertain
    cells, and does so again. No gradient flows through evaluation.

    Args:
        num_classes: K. Default 19, Cityscapes'.
        encoder: a trunk of timm. Default ``resnet101``.
        pretrained: ImageNet weights of the trunk. Default no.
        pyramid_channels: of the levels of the pyramid. Default 256.
        channels: of the coarse head, a multiple of 32. Default 128.
        point_channels: of the layers of the point head. Default 256.
        coarse_each_layer: whether all layers of the point head see the coarse logits. Default the first alone.
        train_points: P, points of each image in training; of three times as many, three quarters of P are chosen by
            uncertainty. Default 2048.
        steps: doublings of evaluation. Default 2, from stride 4 to 1.
        eval_points: cells that each of them replaces. Default 8192.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict: ``"out"``, the coarse logits, ``"points"``
        ``(N, K, P)``, theirs, and ``"coordinates"`` ``(N, P, 2)``, (x, y) in units of width and height.

    Raises:
        ImportError: without timm.
        ValueError: for an encoder that there is not, or numbers that do not fit.

    Example:
        >>> import torch, segops
        >>> model = segops.models.PointRend(5, "resnet18", pyramid_channels=32, channels=32, train_points=100)
        >>> maps = model(torch.randn(2, 3, 64, 96))
        >>> {name: tuple(m.shape) for name, m in maps.items()}
        {'out': (2, 5, 64, 96), 'points': (2, 5, 100), 'coordinates': (2, 100, 2)}
        >>> loss = model.loss(maps, torch.randint(5, (2, 64, 96)))
    """

    loss_weights: ClassVar[dict[str, float]] = {"out": 1.0, "points": 1.0}

    def __init__(
        self,
        num_classes: int = 19,
        encoder: str = "resnet101",
        *,
        pretrained: bool = False,
        pyramid_channels: int = 256,
        channels: int = 128,
        point_channels: int = 256,
        coarse_each_layer: bool = False,
        train_points: int = 2048,
        steps: int = 2,
        eval_points: int = 8192,
    ):
        trunk = make_encoder(encoder, pretrained=pretrained)
        super().__init__(FeaturePyramid(trunk, pyramid_channels), SumHead(pyramid_channels, num_classes, channels))
        self.point_head = PointHead(pyramid_channels, num_classes, point_channels, coarse_each_layer)
        self.train_points = _checks.count("train_points", train_points, 1)
        self.steps = _checks.count("steps", steps)
        self.eval_points = _checks.count("eval_points", eval_points)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """In training the coarse map and points, in evaluation the refined map."""
        finest, *_ = levels = self.backbone(image)
        coarse = self.classifier(levels)
        if not self.training:
            steps, cells = self.steps, self.eval_points
            return {"out": subdivide(coarse, finest, self.point_head, steps=steps, num_points=cells)}
        at = uncertain_points(coarse, self.train_points)
        points = self.point_head(point_sample(finest, at), point_sample(coarse, at))
        return {"out": coarse, "points": points, "coordinates": at}

    def term(self, name: str, maps: dict[str, Tensor], target: Tensor, criterion: Criterion) -> Tensor:
        """Of points with the label of the pixel that each lies in, as a map of one row."""
        if name != "points":
            return criterion(maps[name], target)
        # A coordinate that rounds up to the border lies in the last pixel, not outside, where samples are 0.
        at, labels = maps["coordinates"], target[:, None].to(maps["coordinates"].dtype)
        of_points = point_sample(labels, at, mode="nearest", padding_mode="border")
        return criterion(maps[name][:, :, None], of_points.to(target.dtype))
