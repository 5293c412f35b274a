"""Modules around the operators, one file each."""

from .criss_cross_attention import CrissCrossAttention
from .dense_crf import DenseCRF

__all__ = ["CrissCrossAttention", "DenseCRF"]
