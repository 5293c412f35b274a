"""Where windows lie, how they are weighted, and the rows of an image that are finished while others are not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WEIGHTS = ("uniform", "gaussian")
SIGMA = 1 / 8  # of the window's side, as nnU-Net


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover ``length`` >= ``window``; the last is shifted back to end with it."""
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def profile(window: int, weight: str) -> Tensor:
    """The weights of a window along one side, float64, at most 1."""
    if weight == "uniform":
        return torch.ones(window, dtype=torch.float64)
    offset = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    bell = torch.exp(-0.5 * (offset / (SIGMA * window)) ** 2)
    return bell / bell.max()


def total(length: int, begins: list[int], side: Tensor) -> Tensor:
    """The sum of the windows' weights at each pixel of a side."""
    out = side.new_zeros(length)
    for begin in begins:
        out[begin : begin + len(side)] += side
    return out


class Band:
    """Sums of weighted windows, of the rows only that a window may still add to.

    Windows come from top to bottom. As soon as one begins further down, the rows above it are finished: they are
    divided by the sum of their weights and handed to ``emit(first_row, rows)``.
    """

    def __init__(
        self, sums: Tensor, height: int, totals: tuple[Tensor, Tensor], emit: Callable[[int, Tensor], None]
    ) -> None:
        """Zeros (N, K, window, W), the rows of the image, the sums of weights along both sides, and where rows go."""
        self.sums, self.height, self.emit = sums, height, emit
        self.rows, self.columns = (t.to(sums) for t in totals)
        self.top = 0

    def add(self, image: int, top: int, left: int, values: Tensor) -> None:
        """Add a weighted window (K, h, w) whose first pixel is (top, left)."""
        self.finish(top)
        self.sums[image, :, :, left : left + values.shape[2]] += values

    def finish(self, top: int) -> None:
        """Emit the rows above ``top``, and go on from there."""
        done = top - self.top
        if done == 0:
            return
        finished = self.sums[:, :, :done]
        finished /= self.rows[self.top : top, None] * self.columns
        self.emit(self.top, finished)
        rest = self.sums[:, :, done:].clone()
        self.sums[:, :, : rest.shape[2]] = rest
        self.sums[:, :, rest.shape[2] :] = 0
        self.top = top

    def close(self) -> None:
        """Emit all that is left."""
        self.finish(self.height)
