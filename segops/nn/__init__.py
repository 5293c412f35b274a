"""Modules around the operators, one file each."""

from .dense_crf import DenseCRF
from .em_attention import EMAttention

__all__ = ["DenseCRF", "EMAttention"]
