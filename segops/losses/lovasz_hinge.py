"""segops.losses.LovaszHingeLoss: the Lovasz hinge loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import lovasz_hinge


class LovaszHingeLoss(nn.Module):
    """Lovasz hinge loss of binary logits; see :func:`segops.lovasz_hinge` for the mathematics and the options.

    Args:
        per_image, ignore_index, reduction: as in :func:`segops.lovasz_hinge`.

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

    def __init__(self, *, per_image: bool = True, ignore_index: int | None = None, reduction: str = "mean"):
        super().__init__()
        self.per_image = per_image
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of ``logits`` (N, ...) against ``target`` of the same shape."""
        return lovasz_hinge(
            logits, target, per_image=self.per_image, ignore_index=self.ignore_index, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"per_image={self.per_image}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"
