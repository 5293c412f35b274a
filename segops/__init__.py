"""Custom-kernel operators for semantic segmentation on PyTorch.

Names are looked up when they are first used: ``import segops`` alone imports no torch, so that the NumPy front end
(`segops.compat`) works without it.
"""

from __future__ import annotations

import importlib
from typing import Any

from ._version import __version__

_HOME = {
    "asymmetric_nonlocal": "ops",
    "aspp": "ops",
    "atrous_conv2d": "ops",
    "confusion_matrix": "ops",
    "conv_crf": "ops",
    "criss_cross_attention": "ops",
    "cross_entropy_dice_focal": "ops",
    "dense_crf": "ops",
    "distance_transform": "ops",
    "dynamic_depthwise_conv2d": "ops",
    "em_attention": "ops",
    "encoding": "ops",
    "gaussian_filter_exact": "ops",
    "interlaced_attention": "ops",
    "lovasz_grad": "ops",
    "lovasz_hinge": "ops",
    "lovasz_softmax": "ops",
    "mean_field": "ops",
    "nonlocal_attention": "ops",
    "nonlocal_concatenation": "ops",
    "permutohedral_filter": "ops",
    "point_sample": "ops",
    "point_scatter": "ops",
    "pyramid_pool": "ops",
    "psa_collect": "ops",
    "psa_distribute": "ops",
    "psa_mask": "ops",
    "segmentation_sums": "ops",
    "subdivide": "ops",
    "topk_uncertain_grid": "ops",
    "uncertain_points": "ops",
    "upsample_argmax": "ops",
    "upsample_cross_entropy": "ops",
    "accelerate": "nn",
    "backend": "_backends",
    "explain": "_backends",
}
_MODULES = (
    "compat",
    "data",
    "inference",
    "kernels",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "reference",
    "testing",
    "training",
    "viz",
)

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'segops' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
