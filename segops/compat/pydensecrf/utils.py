"""pydensecrf.utils: unary energies from labels or probabilities, and the features of pairwise terms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from . import _checks

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(labels: Any, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Energies (n_labels, points), float32, of a labelling that is right with probability gt_prob.

    Args:
        labels: integers of any shape and order, row by row the points.
        n_labels: the number of labels; with zero_unsure, 0 is none of them.
        gt_prob: between 0 and 1, exclusive. The other labels share the rest.
        zero_unsure: 0 means unknown, and labels count from 1. Otherwise labels count from 0.

    >>> unary_from_labels([[0, 2], [1, 1]], 2, gt_prob=0.75).round(2)
    array([[0.69, 1.39, 0.29, 0.29],
           [0.69, 0.29, 1.39, 1.39]], dtype=float32)
    """
    n_labels = _checks.count("n_labels", n_labels, 1)
    if not isinstance(gt_prob, Real) or not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob: expected a number between 0 and 1, exclusive, got {gt_prob}")
    first = 1 if zero_unsure else 0
    index = _label_index(labels, n_labels - 1 + first) - first
    energies = np.full((n_labels, index.size), -np.log((1 - gt_prob) / max(1, n_labels - 1)), np.float32)
    known = np.flatnonzero(index >= 0)
    energies[index[known], known] = -np.log(gt_prob)
    energies[:, index < 0] = -np.log(1 / n_labels)
    return energies


def _label_index(labels: Any, highest: int) -> np.ndarray:
    labels = _checks.numbers("labels", labels).ravel()
    index = labels
    if labels.dtype.kind == "f":
        index = _checks.finite("labels", labels).astype(np.int64)
        if (index != labels).any():
            raise ValueError("labels: expected integers, got fractions")
    if index.size and not (0 <= index.min() and index.max() <= highest):
        raise ValueError(f"labels: expected 0 to {highest}, got {index.min()} to {index.max()}")
    return index.astype(np.int64)


def compute_unary(labels: Any, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """Old name of `unary_from_labels`."""
    warnings.warn("compute_unary is deprecated, use unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(sm: Any, scale: float | None = None, clip: float | None = 1e-5) -> np.ndarray:
    """Energies ``-log p`` (labels, points), float32, of probabilities (labels, ...).

    Args:
        sm: probabilities, labels first, the other dimensions row by row the points.
        scale: trust in them, in (0, 1]: mixed with ``1 - scale`` of the uniform distribution.
        clip: probabilities are raised to at least this, and lowered to 1. None: only zeros are raised, to the smallest
            float32 (an energy of 87), so that no energy is infinite.

    >>> unary_from_softmax([[0.9, 0.0], [0.1, 1.0]]).round(2) + 0
    array([[ 0.11, 11.51],
           [ 2.3 ,  0.  ]], dtype=float32)
    """
    sm = _checks.numbers("sm", sm)
    if sm.ndim < 1 or sm.shape[0] < 1:
        raise ValueError(f"sm: expected shape (labels, ...), got {sm.shape}")
    if sm.dtype.kind != "f" or sm.dtype == np.float16:
        sm = sm.astype(np.float32 if sm.dtype == np.float16 else np.float64)
    _checks.finite("sm", sm)
    if scale is not None:
        if not isinstance(scale, Real) or not 0 < scale <= 1:
            raise ValueError(f"scale: expected None or a number in (0, 1], got {scale}")
        sm = scale * sm + (1 - scale) / len(sm)
    if clip is None:
        sm = np.maximum(sm, np.finfo(np.float32).tiny)
    else:
        if not isinstance(clip, Real) or not 0 < clip <= 1:
            raise ValueError(f"clip: expected None or a number in (0, 1], got {clip}")
        sm = np.clip(sm, clip, 1)
    return -np.log(sm).reshape(len(sm), -1).astype(np.float32)


def softmax_to_unary(sm: Any, GT_PROB: float = 1) -> np.ndarray:
    """Old name of `unary_from_softmax`, without clipping."""
    warnings.warn("softmax_to_unary is deprecated, use unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Features (dimensions, points) of position, for `DenseCRF.addPairwiseEnergy` on a grid of any dimensions.

    Args:
        sdims: the kernel's standard deviation along each dimension, in the order of ``shape`` (so y before x).
        shape: of the grid.
    """
    if isinstance(shape, Real):
        raise TypeError(f"shape: expected the sizes of all dimensions, got {type(shape).__name__}")
    sizes = [_checks.count(f"shape[{i}]", n, 1) for i, n in enumerate(shape)]
    sigmas = _per_dimension("sdims", sdims, len(sizes))
    axes = [np.arange(n, dtype=np.float32) / np.float32(s) for n, s in zip(sizes, sigmas, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(len(sizes), -1)


def create_pairwise_bilateral(sdims: Sequence[float], schan: Any, img: Any, chdim: int = -1) -> np.ndarray:
    """Features (dimensions + channels, points) of position and colour, for `DenseCRF.addPairwiseEnergy`.

    Args:
        sdims: the kernel's standard deviation along each dimension of the image, in their order (so y before x).
        schan: that of the channels, one number or one each.
        img: of any number of dimensions.
        chdim: which of its dimensions is that of the channels. -1: none, the image has one channel.
    """
    img = _checks.numbers("img", img)
    chdim = _checks.count("chdim", chdim, -img.ndim - 1)
    if not -img.ndim <= chdim < img.ndim:
        raise ValueError(f"chdim: expected -1 or a dimension of img, of which there are {img.ndim}, got {chdim}")
    channels = img[np.newaxis] if chdim == -1 else np.moveaxis(img, chdim, 0)
    channels = _checks.finite("img", _checks.floats("img", channels, channels.shape))
    colours = channels.reshape(len(channels), -1)
    sigmas = np.array(_checks.positives("schan", schan, len(colours)), np.float32)
    return np.concatenate([create_pairwise_gaussian(sdims, channels.shape[1:]), colours / sigmas[:, np.newaxis]])


def _per_dimension(name: str, x: Any, n: int) -> list[float]:
    if isinstance(x, Real):
        raise TypeError(f"{name}: expected {n} numbers, one for each dimension, got one number")
    return _checks.positives(name, x, n)
