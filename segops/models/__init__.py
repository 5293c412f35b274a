"""Reference models of the field on segops' operators: one file for each, under the name of the model.

The facts of each (paper, variant, parameters, what is uncertain) are in its card: ``segops.models.model_card(name)``.
"""

from __future__ import annotations

from .ann import ANN
from .ccnet import CCNet
from .conv_crf import ConvCRFModel
from .deeplab_v1 import DeepLabV1
from .deeplab_v2 import DeepLabV2
from .deeplab_v3 import DeepLabV3
from .deeplab_v3_plus import DeepLabV3Plus
from .dense_aspp import DenseASPP
from .dilated_net import DilatedNet
from .emanet import EMANet
from .encnet import EncNet
from .espnet import ESPNet
from .fcn import FCN
from .fcn_vgg import FCNVGG
from .isanet import ISANet
from .model import SegmentationModel
from .ocnet import OCNet
from .ocrnet import OCRNet
from .parts.encoder import CONVENTIONS, encoder
from .pointrend import PointRend
from .psanet import PSANet
from .pspnet import PSPNet
from .registry import FAMILIES, Anchor, Card, create_model, list_models, model_card, register_model
from .retinal_vessel_net import RetinalVesselNet
from .segnet import SegNet
from .semantic_fpn import SemanticFPN
from .unet import UNet

__all__ = [
    "ANN",
    "CONVENTIONS",
    "FAMILIES",
    "FCN",
    "FCNVGG",
    "Anchor",
    "CCNet",
    "Card",
    "ConvCRFModel",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DeepLabV3Plus",
    "DenseASPP",
    "DilatedNet",
    "EMANet",
    "ESPNet",
    "EncNet",
    "EncNet",
    "ISANet",
    "OCNet",
    "OCRNet",
    "PSANet",
    "PSPNet",
    "PointRend",
    "RetinalVesselNet",
    "SegNet",
    "SegmentationModel",
    "SegmentationModel",
    "SemanticFPN",
    "UNet",
    "create_model",
    "encoder",
    "list_models",
    "model_card",
    "register_model",
]
