"""ConvCRF: any model of this package, and a convolutional CRF that fits its answer to the edges of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..data import IMAGENET_MEAN, IMAGENET_STD
from ..nn import ConvCRF
from .model import Criterion, SegmentationModel
from .parts.colours import Colours
from .registry import Anchor, Card, create_model, register_model

CARD = Card(
    title="Convolutional CRFs for Semantic Segmentation",
    authors="Teichmann, Cipolla",
    year=2019,
    venue="BMVC",
    url="https://arxiv.org/abs/1805.04777",
    family="refinement",
    canonical="the authors' weights, widths, window of 11 and blur of 4, on FCN with a ResNet-50",
    uncertain="The paper's model beneath is a ResNet-101 of its own, for which FCN stands here. The first messages "
    "carry probabilities; the published code sends their logarithms. The paper trains the model first, and the CRF "
    "after it or with it; here both learn together, unless parameters are frozen.",
    fidelity="structural",
    kernels=("conv_crf", "atrous_conv2d"),
    anchors=(
        Anchor(
            35_322_218,
            {"num_classes": 21, "learn_weights": False, "learn_compatibility": False, "learn_sigmas": False},
            "torchvision's FCN, to which a fixed CRF adds nothing",
        ),
    ),
    small={"encoder": "resnet18", "num_classes": 5, "filter_size": 5, "iterations": 2},
)


@register_model("conv_crf", CARD)
class ConvCRFModel(SegmentationModel):
    """A model and :class:`segops.nn.ConvCRF` on its logits, at the size of the image.

    The CRF reads colours from 0 to 255, whereas models read normalised images: ``255 (std x image + mean)`` gives them
    back.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        model: a name of :func:`segops.models.list_models`. Default ``fcn``.
        filter_size, blur, iterations: of the CRF, see :func:`segops.conv_crf`. Default as published: 11, 4 and 5.
        learn_weights, learn_compatibility, learn_sigmas: which of its numbers are parameters, see
            :class:`segops.nn.ConvCRF`. Default all.
        mean, std: of the images' normalisation, for colours from 0 to 1. Default ImageNet's.
        **options: of the model, ``encoder`` for instance.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict: ``"out"``, the refined logits, ``"unary"``, those of
        the model, and what else it gives. The loss is the model's, with the refined logits for its own.

    Raises:
        TypeError: for an option that the model does not have.
        ValueError: for a model that there is not, or options that do not fit.

    Example:
        >>> import torch, segops
        >>> model = segops.models.create_model("conv_crf", model="fcn", encoder="resnet18", num_classes=5)
        >>> maps = model(torch.randn(2, 3, 64, 96))
        >>> {name: tuple(m.shape) for name, m in maps.items()}
        {'out': (2, 5, 64, 96), 'aux': (2, 5, 64, 96), 'unary': (2, 5, 64, 96)}
    """

    backbone: SegmentationModel

    def __init__(
        self,
        num_classes: int = 21,
        model: str = "fcn",
        *,
        filter_size: int = 11,
        blur: int = 4,
        iterations: int = 5,
        learn_weights: bool = True,
        learn_compatibility: bool = True,
        learn_sigmas: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        **options: Any,
    ):
        crf = ConvCRF(
            num_classes,
            filter_size=filter_size,
            blur=blur,
            iterations=iterations,
            learn_weights=learn_weights,
            learn_compatibility=learn_compatibility,
            learn_sigmas=learn_sigmas,
        )
        super().__init__(create_model(model, num_classes=num_classes, **options), crf)
        self.colours = Colours(mean, std)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The refined logits, and in training all that the model gives."""
        given = self.backbone(image)
        maps = given if self.training else {"out": given}
        refined = self.classifier(maps["out"], self.colours(image))
        return {**maps, "out": refined, "unary": maps["out"]} if self.training else {"out": refined}

    def loss(self, maps: dict[str, Tensor], target: Tensor, criterion: Criterion | None = None) -> Tensor:
        """The model's own, of the refined logits."""
        return self.backbone.loss(maps, target, criterion)
