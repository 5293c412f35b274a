"""segops.losses.UpsampleCrossEntropyLoss: cross entropy of logits of lower resolution, as a module."""

from __future__ import annotations

from ..ops import upsample_cross_entropy
from ._contract import Loss


class UpsampleCrossEntropyLoss(Loss):
    """:func:`segops.upsample_cross_entropy` as a module, whose options it takes.

    Shape:
        logits ``(N, C, h, w)`` and target ``(N, H, W)`` to a scalar, or ``(N, H, W)`` with ``reduction="none"``.

    Raises:
        TypeError, ValueError: in ``forward``, for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.UpsampleCrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 64, 64))).shape
        torch.Size([])
    """

    function = staticmethod(upsample_cross_entropy)
