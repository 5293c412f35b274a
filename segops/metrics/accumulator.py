"""What the accumulating metrics share: sums over batches, that of other objects and of other processes added."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _checks

Self = TypeVar("Self", bound="Accumulator")


class Accumulator(ABC):
    """Sums of what each batch counts; a subclass says what is counted, and what comes of the sums.

    ``sums`` live on the device of the first batch. They hold all of the state: sums are the same however the pixels
    were cut into batches, objects and processes (of integers exactly).
    """

    def __init__(
        self, num_classes: int, ignore_index: int | None, sums: tuple[int, ...], dtype: torch.dtype = torch.int64
    ):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.sums = torch.zeros(sums, dtype=dtype)

    @abstractmethod
    def count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What a batch adds to the sums."""

    @abstractmethod
    def compute(self) -> Tensor:
        """What comes of everything so far."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Take in a batch: predicted labels ``(N, H, W)`` or logits ``(N, C, H, W)``, and labels ``(N, H, W)``."""
        added = self.count(prediction, target)
        self.sums = self.sums.to(added.device) + added

    def reset(self) -> None:
        """Forget everything."""
        self.sums = torch.zeros_like(self.sums)

    def merge(self: Self, other: Self) -> None:
        """Take in what another object of the same kind and options has taken in.

        Raises:
            TypeError: for another kind.
            ValueError: for other options.
        """
        if type(other) is not type(self):
            raise TypeError(f"other: expected a {type(self).__name__}, got {type(other).__name__}")
        if other.options() != self.options():
            raise ValueError(f"other: expected the options {self.options()}, got {other.options()}")
        self.sums = self.sums + other.sums.to(self.sums.device)

    def sync(self: Self, group: Any = None) -> Self:
        """A new object with the sums of all processes of ``group``, or a copy where torch.distributed is not
        initialised. Every process has to call it; this object stays as it is."""
        out = copy.copy(self)
        if dist.is_available() and dist.is_initialized():
            out.sums = self.sums.cuda() if dist.get_backend(group) == "nccl" else self.sums
            out.sums = out.sums.clone()
            dist.all_reduce(out.sums, group=group)
        return out

    def options(self) -> dict[str, Any]:
        """Everything but the sums."""
        return {name: value for name, value in vars(self).items() if name != "sums"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options().items())})"


def checked(num_classes: int, ignore_index: int | None) -> tuple[int, int | None]:
    """The two options that all have."""
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    return _checks.count("num_classes", num_classes, least=1), ignore_index
