"""Modules around the operators, one file each."""

from .accelerate import accelerate
from .aspp import ASPP
from .asymmetric_nonlocal import AFNB, APNB
from .atrous_conv2d import AtrousConv2d, AtrousSeparableConv2d
from .conv_crf import ConvCRF
from .criss_cross_attention import CrissCrossAttention
from .dense_crf import DenseCRF
from .em_attention import EMAttention
from .encoding import Encoding
from .interlaced_attention import InterlacedAttention
from .nonlocal_attention import NonLocal
from .psa import PSA

__all__ = [
    "AFNB",
    "APNB",
    "ASPP",
    "PSA",
    "AtrousConv2d",
    "AtrousSeparableConv2d",
    "ConvCRF",
    "CrissCrossAttention",
    "DenseCRF",
    "EMAttention",
    "Encoding",
    "InterlacedAttention",
    "NonLocal",
    "accelerate",
]
