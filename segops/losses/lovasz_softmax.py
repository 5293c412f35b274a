"""segops.losses.LovaszSoftmaxLoss: the Lovasz-softmax loss as a module."""

from __future__ import annotations

from ..ops import lovasz_softmax
from ._contract import Loss


class LovaszSoftmaxLoss(Loss):
    """:func:`segops.lovasz_softmax` as a module, whose options it takes; ``class_weight`` is kept as a buffer.

    Shape:
        input ``(N, C, ...)`` and target ``(N, ...)`` to a scalar, or ``(N,)`` with ``per_image=True`` and
        ``reduction="none"``.

    Raises:
        TypeError, ValueError: in ``forward``, for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.LovaszSoftmaxLoss(ignore_index=255)
        >>> loss(torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(lovasz_softmax)
