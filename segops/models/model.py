"""What every model of this package is: maps of logits at its own resolution, brought to the size of the image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from ..losses import cross_entropy

Criterion = Callable[[Tensor, Tensor], Tensor]


class SegmentationModel(nn.Module):
    """A backbone, a classifier over its features, and, for training, an auxiliary classifier.

    Evaluation gives logits; training gives a dict of all that a loss may want, logits under ``"out"``, those of the
    auxiliary head under ``"aux"``, and what else the model's own page names.

    Args:
        backbone: image to a list of features, finest first.
        classifier: that list to logits.
        aux_classifier: the same, in training only. None: there is none.
        align_corners: how logits are interpolated.

    Shape:
        ``(N, 3, H, W)`` to ``(N, num_classes, H, W)``; in training a dict with maps of that size.
    """

    # Of the terms of the loss, by the names of the maps of training; one that a model does not give is left out.
    loss_weights: ClassVar[dict[str, float]] = {"out": 1.0, "aux": 0.4}
    in_channels: int = 3  # of the image; models that have the option set their own

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module | None = None,
        *,
        align_corners: bool = False,
    ):
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier = backbone, classifier, aux_classifier
        self.align_corners = align_corners

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of logits at the model's own resolution, for losses and predictions that interpolate themselves
        (:func:`segops.upsample_cross_entropy`, :func:`segops.upsample_argmax`)."""
        features = self.backbone(image)
        maps = {"out": self.classifier(features)}
        if self.training and self.aux_classifier is not None:
            maps["aux"] = self.aux_classifier(features)
        return maps

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """image (N, 3, H, W) to logits (N, num_classes, H, W); in training a dict with them under "out"."""
        maps = self.logits(check_image(image, self.in_channels))
        size = image.shape[-2:]
        sized = {name: resize(m, size, self.align_corners) if m.dim() == 4 else m for name, m in maps.items()}
        return sized if self.training else sized["out"]

    def loss(self, maps: dict[str, Tensor], target: Tensor, criterion: Criterion | None = None) -> Tensor:
        """What training minimises: the sum of the terms of all maps that have a weight.

        Args:
            maps: what the model gave in training.
            target: classes (N, H, W), integers; 255 is ignored by the default criterion.
            criterion: of logits (N, K, H, W) and target. Default ``segops.losses.cross_entropy``, 255 ignored.
        """
        criterion = partial(cross_entropy, ignore_index=255) if criterion is None else criterion
        weights = {name: weight for name, weight in self.loss_weights.items() if name in maps}
        terms = [weight * self.term(name, maps, target, criterion) for name, weight in weights.items()]
        return torch.stack(terms).sum()

    def term(self, name: str, maps: dict[str, Tensor], target: Tensor, criterion: Criterion) -> Tensor:
        """The loss of one map, before its weight; models with maps of another kind have their own."""
        return criterion(maps[name], target)


def check_image(image: Any, channels: int = 3) -> Tensor:
    """A float image (N, channels, H, W) without an empty side."""
    form = f"(N, {channels}, H, W)"
    _checks.floating("image", _checks.tensor("image", image, 4, form))
    if image.shape[1] != channels or 0 in image.shape[2:]:
        raise ValueError(f"image: expected {form}, H and W at least 1, got shape {_checks.shape(image)}")
    return image


def resize(x: Tensor, size: Any, align_corners: bool = False) -> Tensor:
    """Bilinear, to a size."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
