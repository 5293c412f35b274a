"""Modules around the operators, one file each."""

from .dense_crf import DenseCRF
from .em_attention import EMAttention
from .encoding import Encoding

__all__ = ["DenseCRF", "EMAttention", "Encoding"]
