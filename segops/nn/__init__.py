"""Modules around the operators, one file each."""

from .dense_crf import DenseCRF

__all__ = ["DenseCRF"]
