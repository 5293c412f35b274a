"""Losses, each as a function and as a module."""

from ..ops import lovasz_hinge, lovasz_softmax
from .binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy
from .combined import CombinedLoss
from .combo_loss import ComboLoss, combo_loss
from .conventions import convention
from .cross_entropy import CrossEntropyLoss, cross_entropy
from .dice_loss import DiceLoss, dice_loss
from .focal_loss import FocalLoss, focal_loss
from .label_relaxation import LabelRelaxationLoss, label_relaxation
from .lovasz_hinge import LovaszHingeLoss
from .lovasz_softmax import LovaszSoftmaxLoss
from .ohem_cross_entropy import OHEMCrossEntropyLoss, ohem_cross_entropy
from .tversky_loss import FocalTverskyLoss, TverskyLoss, focal_tversky_loss, tversky_loss

__all__ = [
    "BinaryCrossEntropyLoss",
    "CombinedLoss",
    "ComboLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "LabelRelaxationLoss",
    "LovaszHingeLoss",
    "LovaszSoftmaxLoss",
    "OHEMCrossEntropyLoss",
    "TverskyLoss",
    "binary_cross_entropy",
    "combo_loss",
    "convention",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "focal_tversky_loss",
    "label_relaxation",
    "lovasz_hinge",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "tversky_loss",
]
