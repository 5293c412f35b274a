"""segops.losses.CombinedLoss: a weighted sum of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .. import _checks


class CombinedLoss(nn.Module):
    """A weighted sum of losses of the same logits and targets.

    Args:
        losses: modules by name. Each is called with logits and target, and returns a scalar.
        weights: their factors, one each; any finite numbers. Default: 1 each.

    Shape:
        What the losses take, usually logits ``(N, C, H, W)`` and target ``(N, H, W)``, to a scalar.

    Raises:
        TypeError: if ``losses`` is no mapping to modules.
        ValueError: if there are none, or not as many weights.

    Example:
        >>> import torch, segops
        >>> from segops.losses import CombinedLoss, CrossEntropyLoss, DiceLoss
        >>> loss = CombinedLoss({"ce": CrossEntropyLoss(), "dice": DiceLoss()}, weights=[1, 0.5])
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
        >>> parts = loss.parts(logits, target)  # without their weights, as logs want them
        >>> print({name: round(x.item(), 4) for name, x in parts.items()})
        {'ce': 0.6931, 'dice': 0.6667}
        >>> loss(logits, target)
        tensor(1.0265)
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Sequence[float] | None = None):
        super().__init__()
        if not isinstance(losses, Mapping) or not all(isinstance(x, nn.Module) for x in losses.values()):
            raise TypeError("losses: expected a mapping of names to modules")
        if not losses:
            raise ValueError("losses: expected at least one")
        self.losses = nn.ModuleDict(losses)
        self.weights = [1.0] * len(losses) if weights is None else list(weights)
        if len(self.weights) != len(losses):
            raise ValueError(f"weights: expected {len(losses)}, one for each loss, got {len(self.weights)}")
        self.weights = [_checks.finite(f"weights[{i}]", x) for i, x in enumerate(self.weights)]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The weighted sum of the losses of ``logits`` against ``target``."""
        parts = self.parts(logits, target).values()
        return sum((w * x for w, x in zip(self.weights[1:], list(parts)[1:])), self.weights[0] * next(iter(parts)))

    def parts(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Each loss by its name, without its weight."""
        return {name: loss(logits, target) for name, loss in self.losses.items()}

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
