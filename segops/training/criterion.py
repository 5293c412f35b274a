"""Losses by name, with weights: ``cross_entropy+0.5*lovasz_softmax``."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from .. import losses

IGNORE = 255
LOSSES: dict[str, Any] = {
    "combo_loss": losses.ComboLoss,
    "cross_entropy": losses.CrossEntropyLoss,
    "cross_entropy_dice_focal": losses.CrossEntropyDiceFocalLoss,
    "dice_loss": losses.DiceLoss,
    "focal_loss": losses.FocalLoss,
    "focal_tversky_loss": losses.FocalTverskyLoss,
    "label_relaxation": losses.LabelRelaxationLoss,
    "lovasz_softmax": losses.LovaszSoftmaxLoss,
    "ohem_cross_entropy": losses.OHEMCrossEntropyLoss,
    "tversky_loss": losses.TverskyLoss,
}
_TERM = re.compile(r"(?:([0-9.eE+-]+)\s*\*\s*)?([a-z_]+)$")


def criterion(text: str, class_weight: Tensor | None = None) -> nn.Module:
    """A loss of logits (N, K, H, W) and labels (N, H, W), 255 ignored.

    Args:
        text: terms joined by ``+``, each a name of ``LOSSES`` with a factor and ``*`` before it, or without.
        class_weight: (K,), for all terms.

    Raises:
        ValueError: for text that says something else.
    """
    terms, weights = {}, []
    for part in text.replace(" ", "").split("+"):
        found = _TERM.match(part)
        if found is None or found[2] not in LOSSES or found[2] in terms:
            raise ValueError(
                f"loss: expected terms like 0.5*NAME joined by +, NAME of {', '.join(LOSSES)}; got {text!r}"
            )
        terms[found[2]] = LOSSES[found[2]](ignore_index=IGNORE, class_weight=class_weight)
        weights.append(float(found[1] or 1))
    return losses.CombinedLoss(terms, weights)


def class_weights(kind: str, frequencies: Tensor) -> Tensor | None:
    """Of a recipe's ``class_weights``."""
    kinds = {"median_frequency": median_frequency_weights, "log_frequency": log_frequency_weights}
    return kinds[kind](frequencies) if kind in kinds else None


def log_frequency_weights(frequencies: Tensor) -> Tensor:
    """1 / ln(1.1 + share of all pixels), as ESPNet has it (ENet with 1.02): milder than by the median frequency."""
    share = frequencies[0].double() / frequencies[0].sum().clamp(min=1)
    return (1.1 + share).log().reciprocal().float()


def median_frequency_weights(frequencies: Tensor) -> Tensor:
    """Class weights by median frequency (Eigen and Fergus, 2015; SegNet): the median of all classes' shares of the
    photos that have them, over the class's own. A class that is nowhere gets 1.

    Args:
        frequencies: int64 (2, K), pixels of each class, and of the photos that have it.
    """
    pixels, of_photos = frequencies.double()
    share = pixels / of_photos.clamp(min=1)
    there = share > 0
    if not there.any():
        return share.new_ones(len(share)).float()
    return share[there].quantile(0.5).div(share).where(there, share.new_ones(())).float()
