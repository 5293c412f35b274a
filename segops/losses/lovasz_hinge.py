"""segops.losses.LovaszHingeLoss: the Lovasz hinge loss as a module."""

from __future__ import annotations

from ..ops import lovasz_hinge
from ._contract import Loss


class LovaszHingeLoss(Loss):
    """:func:`segops.lovasz_hinge` as a module, whose options it takes.

    Shape:
        logits ``(N, ...)`` and target of the same shape to a scalar, or ``(N,)`` with ``per_image=True`` and
        ``reduction="none"``.

    Raises:
        TypeError, ValueError: in ``forward``, for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.LovaszHingeLoss()
        >>> loss(torch.randn(2, 8, 8), torch.randint(0, 2, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(lovasz_hinge)
