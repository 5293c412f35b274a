"""Modules around the operators, one file each."""

from .conv_crf import ConvCRF
from .criss_cross_attention import CrissCrossAttention
from .dense_crf import DenseCRF
from .em_attention import EMAttention
from .encoding import Encoding

__all__ = ["ConvCRF", "CrissCrossAttention", "DenseCRF", "EMAttention", "Encoding"]
