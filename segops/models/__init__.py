"""Reference models of the field on segops' operators: one file for each, under the name of the model.

The facts of each (paper, variant, parameters, what is uncertain) are in its card: ``segops.models.model_card(name)``.
"""

from __future__ import annotations

from .conv_crf import ConvCRFModel
from .encnet import EncNet
from .fcn import FCN
from .model import SegmentationModel
from .ocrnet import OCRNet
from .parts.encoder import CONVENTIONS, encoder
from .pointrend import PointRend
from .registry import FAMILIES, Anchor, Card, create_model, list_models, model_card, register_model
from .semantic_fpn import SemanticFPN

__all__ = [
    "CONVENTIONS",
    "FAMILIES",
    "FCN",
    "Anchor",
    "Card",
    "ConvCRFModel",
    "EncNet",
    "OCRNet",
    "PointRend",
    "SegmentationModel",
    "SemanticFPN",
    "create_model",
    "encoder",
    "list_models",
    "model_card",
    "register_model",
]
