"""Losses, each as a function and as a module."""

from ..ops import lovasz_hinge, lovasz_softmax
from .lovasz_hinge import LovaszHingeLoss
from .lovasz_softmax import LovaszSoftmaxLoss

__all__ = ["LovaszHingeLoss", "LovaszSoftmaxLoss", "lovasz_hinge", "lovasz_softmax"]
