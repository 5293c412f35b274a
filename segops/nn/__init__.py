"""Modules around the operators, one file each."""

from .accelerate import accelerate
from .aspp import ASPP
from .atrous_conv2d import AtrousConv2d, AtrousSeparableConv2d
from .criss_cross_attention import CrissCrossAttention
from .dense_crf import DenseCRF
from .em_attention import EMAttention
from .encoding import Encoding

__all__ = [
    "ASPP",
    "AtrousConv2d",
    "AtrousSeparableConv2d",
    "CrissCrossAttention",
    "DenseCRF",
    "EMAttention",
    "Encoding",
    "accelerate",
]
