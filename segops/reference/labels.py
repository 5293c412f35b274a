"""Which labels of pixels are right, for the references of all losses."""

from __future__ import annotations

from torch import Tensor


def check_labels(target: Tensor, labels: int, ignore_index: int | None) -> None:
    """Labels 0 to ``labels`` - 1, or ``ignore_index``."""
    wrong = (target < 0) | (target >= labels)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        spare = "" if ignore_index is None else f" or ignore_index = {ignore_index}"
        raise ValueError(f"target: expected labels from 0 to {labels - 1}{spare}, got {int(target[wrong][0])}")
