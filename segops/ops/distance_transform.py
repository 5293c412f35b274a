"""segops.distance_transform: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import distance_transform as reference

MAX_SIDE = 1 << 24  # squared distances stay exact in float64, and steps in 32 bits


def distance_transform(mask: Tensor, *, multilabel: bool = False) -> Tensor:
    r"""Exact Euclidean distance of every non-zero pixel to the nearest zero.

    The convention of ``scipy.ndimage.distance_transform_edt``: zeros get 0, all other pixels the distance, in pixels,
    to the nearest zero of their image. Outside the image there is nothing. Linear time: one scan along the columns,
    then the lower envelope of parabolas along each row (Meijster, Roerdink and Hesselink, *A General Algorithm for
    Computing Distance Transforms in Linear Time*, 2000; Felzenszwalb and Huttenlocher, *Distance Transforms of Sampled
    Functions*, 2012).

    Args:
        mask: ``(H, W)`` or with any leading dimensions, ``(..., H, W)``, each image by itself; any dtype, NaN is not
            zero.
        multilabel: labels in place of a mask: every non-zero pixel's distance to the nearest pixel of another label,
            0 or not; all classes' transforms in one. Takes integers or bool. Default ``False``: all that is not zero
            is one.

    Returns:
        The shape of ``mask``, float32. Squared distances are computed as integers, so that their root is rounded once.
        In an image without a zero (without another label) the distance is infinite, where SciPy returns distances to a
        point outside.

    Not differentiable.

    Raises:
        TypeError: for what is no dense tensor, or no integers with ``multilabel=True``.
        ValueError: for less than two dimensions.

    Example:
        >>> import torch, segops
        >>> mask = torch.ones(3, 5)
        >>> mask[1, 1] = 0
        >>> segops.distance_transform(mask)
        tensor([[1.4142, 1.0000, 1.4142, 2.2361, 3.1623],
                [1.0000, 0.0000, 1.0000, 2.0000, 3.0000],
                [1.4142, 1.0000, 1.4142, 2.2361, 3.1623]])
    """
    _checks.dense("mask", mask, "(..., H, W)")
    if mask.dim() < 2:
        raise ValueError(f"mask: expected at least 2 dimensions (..., H, W), got shape {_checks.shape(mask)}")
    if max(mask.shape[-2:]) > MAX_SIDE:
        raise ValueError(f"mask: expected sides of at most {MAX_SIDE}, got shape {_checks.shape(mask)}")
    labels = _checks.narrow_labels("mask", mask if multilabel or mask.dtype == torch.bool else mask != 0)
    images = labels[None] if labels.dim() == 2 else labels.flatten(0, -3)
    return _registry.call(torch.ops.segops.distance_transform, images).reshape(mask.shape)


def _fake(labels: Tensor) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.float32)


_registry.register(
    "distance_transform(Tensor labels) -> Tensor",
    file="distance_transform",
    reference=reference.distance_transform,
    fake=_fake,
    batch=(0,),
)
