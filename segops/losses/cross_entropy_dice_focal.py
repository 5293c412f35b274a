"""segops.losses.CrossEntropyDiceFocalLoss: three losses in one pass, as a module."""

from __future__ import annotations

from ..ops import cross_entropy_dice_focal
from ._contract import Loss


class CrossEntropyDiceFocalLoss(Loss):
    """:func:`segops.cross_entropy_dice_focal` as a module, whose options it takes.

    Shape:
        logits ``(N, C, ...)`` and target ``(N, ...)`` to a scalar, or ``(N,)`` with ``per_image=True`` and
        ``reduction="none"``.

    Raises:
        TypeError, ValueError: in ``forward``, for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.CrossEntropyDiceFocalLoss(focal=0.5)
        >>> loss(torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(cross_entropy_dice_focal)
