"""segops.losses.convention: the options that give another library's numbers."""

from __future__ import annotations

from typing import Any

_SMP_REGION = {"smooth": 0.0, "absent": "zero", "mean_over": "weights"}
_MONAI_REGION = {"smooth": 1e-5, "absent": "formula", "per_image": True, "mean_over": "classes"}
_ALL = {"mean_over": "all"}

_CONVENTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "torch": {
        "binary_cross_entropy": {"mean_over": "all"},
        "cross_entropy": {"mean_over": "weights"},
    },
    "smp": {
        "binary_cross_entropy": _ALL,
        "cross_entropy": _ALL,
        "dice_loss": _SMP_REGION,
        "focal_loss": {"mode": "multilabel", "mean_over": "weights"},
        "tversky_loss": {**_SMP_REGION, "alpha": 0.5, "beta": 0.5, "gamma_of": "mean"},
    },
    "monai": {
        "dice_loss": _MONAI_REGION,
        "focal_loss": {"mode": "multilabel", "mean_over": "elements"},
        "tversky_loss": {**_MONAI_REGION, "alpha": 0.5, "beta": 0.5},
    },
    "mmseg": {
        "binary_cross_entropy": {"mode": "multilabel", "mean_over": "all"},
        "cross_entropy": _ALL,
        "dice_loss": {"mode": "multilabel", "micro": True, "squared": True, "smooth": (0.0, 2e-3), "per_image": True},
        "focal_loss": {"mode": "multilabel", "alpha": 0.5, "mean_over": "all"},
        "ohem_cross_entropy": {"threshold": 0.7, "min_kept": 100_000, "mean_over": "valid"},
        "tversky_loss": {"alpha": 0.3, "beta": 0.7, "smooth": 1.0, "per_image": True},
    },
}


def convention(library: str, loss: str) -> dict[str, Any]:
    """The options with which a loss of this package gives the numbers that another library gives by default.

    ``ignore_index``, which belongs to the data, is left to the caller. The page of the losses says where numbers differ
    all the same; it is where the other library lets ignored pixels or empty batches in.

    Args:
        library: ``"torch"``, ``"smp"`` (segmentation models PyTorch 0.6), ``"monai"`` (1.6) or ``"mmseg"``
            (MMSegmentation 1.2).
        loss: the name of the function, like ``"dice_loss"``.

    Returns:
        A dictionary of options, for the function or the module; change it as you like.

    Raises:
        ValueError: for a library that is not listed, or a loss that it does not have.

    Example:
        >>> import torch, segops
        >>> segops.losses.convention("smp", "dice_loss")
        {'smooth': 0.0, 'absent': 'zero', 'mean_over': 'weights'}
        >>> loss = segops.losses.DiceLoss(**segops.losses.convention("smp", "dice_loss"))
    """
    for name, x, known in (("library", library, _CONVENTIONS), ("loss", loss, _CONVENTIONS.get(library, {}))):
        if x not in known:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {x!r}")
    return dict(_CONVENTIONS[library][loss])
