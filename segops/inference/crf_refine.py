"""segops.inference.crf_refine: the dense CRF of the image on top of a model's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..ops import dense_crf


def crf_refine(logits: Tensor, image: Tensor, **options: Any) -> Tensor:
    r"""Refine logits with the fully connected CRF of their image: :func:`segops.dense_crf` that returns logits.

    Args:
        logits: ``(N, K, H, W)``; one class (K = 1) is the logit of a foreground, and so is what comes back.
        image: ``(N, C, H, W)``, the photo with its own colours, not what a network gets after normalisation: uint8, or
            floating point with ``bilateral_sigma_rgb`` in its units.
        options: of :func:`segops.dense_crf`, except ``return_logits``.

    Returns:
        ``(N, K, H, W)`` logits, whose softmax (of one class, sigmoid) are the marginals, in the dtype of ``logits``
        (float32 inside autocast). Without gradients; for those take :class:`segops.nn.DenseCRF`.

    Raises:
        TypeError, ValueError: for arguments that do not fit, as in :func:`segops.dense_crf`.

    Example:
        >>> import torch, segops
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> segops.inference.crf_refine(torch.randn(1, 5, 20, 30), image, iterations=2).shape
        torch.Size([1, 5, 20, 30])
    """
    if "return_logits" in options:
        raise TypeError("return_logits: expected only options that leave it open, crf_refine returns logits")
    _checks.floating("logits", _checks.tensor("logits", logits, 4, "(N, K, H, W)"))
    with torch.no_grad():
        if logits.shape[1] != 1:
            return dense_crf(logits, image, return_logits=True, **options)
        both = dense_crf(torch.cat([torch.zeros_like(logits), logits], 1), image, return_logits=True, **options)
        return both[:, 1:] - both[:, :1]
