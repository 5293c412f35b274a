"""segops.losses.LovaszSoftmaxLoss: the Lovasz-softmax loss as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..ops import lovasz_softmax


class LovaszSoftmaxLoss(nn.Module):
    """Lovasz-softmax loss of logits; see :func:`segops.lovasz_softmax` for the mathematics and the options.

    Args:
        from_logits, classes, per_image, ignore_index, reduction: as in :func:`segops.lovasz_softmax`.
        class_weight: ``(C,)`` factors of the classes' losses, kept as a buffer.

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

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        from_logits: bool = True,
        classes: str | Sequence[int] = "present",
        per_image: bool = False,
        ignore_index: int | None = None,
        class_weight: Tensor | None = None,
        reduction: str = "mean",
    ):
        super().__init__()
        self.from_logits = from_logits
        self.classes = classes
        self.per_image = per_image
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of ``input`` (N, C, ...) against ``target`` (N, ...)."""
        return lovasz_softmax(
            input,
            target,
            from_logits=self.from_logits,
            classes=self.classes,
            per_image=self.per_image,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"from_logits={self.from_logits}, classes={self.classes!r}, per_image={self.per_image}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        )
