"""Reference models of the field on segops' operators: one file for each, under the name of the model.

The facts of each (paper, variant, parameters, what is uncertain) are in its card: ``segops.models.model_card(name)``.
"""

from __future__ import annotations

from .deeplab_v2 import DeepLabV2
from .deeplab_v3 import DeepLabV3
from .deeplab_v3_plus import DeepLabV3Plus
from .dense_aspp import DenseASPP
from .fcn import FCN
from .model import SegmentationModel
from .parts.encoder import CONVENTIONS, encoder
from .pspnet import PSPNet
from .registry import FAMILIES, Anchor, Card, create_model, list_models, model_card, register_model

__all__ = [
    "CONVENTIONS",
    "FAMILIES",
    "FCN",
    "Anchor",
    "Card",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DenseASPP",
    "PSPNet",
    "SegmentationModel",
    "create_model",
    "encoder",
    "list_models",
    "model_card",
    "register_model",
]
