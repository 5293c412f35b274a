"""From a trained model to the segmentation of an image: windows, scales, mirrors, several models, CRF."""

from .crf_refine import crf_refine
from .ensemble import ensemble
from .multi_scale_flip import multi_scale_flip
from .predict import predict
from .sliding_window import sliding_window

__all__ = ["crf_refine", "ensemble", "multi_scale_flip", "predict", "sliding_window"]
