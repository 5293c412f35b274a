"""One table of small inputs for every registered operator: ordinary, odd and empty ones.

Inputs are made in float64 from a fixed seed, then cast, so that every dtype sees the same numbers. Features are random:
on a grid, points may lie exactly on a face of the lattice, where float32 and float64 rightly choose different vertices
(the golden cases cover grids).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Arguments of ``torch.ops.segops.<op>``; ``gradients`` are the positions of those that get one."""

    op: str
    name: str
    make: Callable[[torch.Generator], tuple]
    gradients: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def args(self, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu") -> tuple:
        """Fresh arguments: floating tensors in ``dtype`` on ``device``."""
        generator = torch.Generator().manual_seed(sum(map(ord, str(self))))

        def cast(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
            return [cast(y) for y in x] if isinstance(x, list) and x and isinstance(x[0], Tensor) else x

        return tuple(map(cast, self.make(generator)))


def _randn(g: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def _filter(batch: int, channels: int, dim: int, points: int, shared: bool, *rest: Any) -> Callable:
    def make(g: torch.Generator) -> tuple:
        return (_randn(g, batch, channels, points), _randn(g, 1 if shared else batch, dim, points, scale=1.5), *rest)

    return make


def _mean_field(batch: int, labels: int, points: int, matrix: bool, *options: Any) -> Callable:
    def make(g: torch.Generator) -> tuple:
        features = [_randn(g, 1, 2, points, scale=2.0), _randn(g, batch, 3, points, scale=1.5)]
        shape = (2, labels, labels) if matrix else (2, labels)
        return _randn(g, batch, labels, points), features, _randn(g, *shape, scale=0.3), *options

    return make


def _mean_field_backward(*args: Any) -> Callable:
    forward = _mean_field(*args)

    def make(g: torch.Generator) -> tuple:
        logits, *rest = forward(g)
        return _randn(g, *logits.shape), logits, *rest

    return make


def _image(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Callable:
    def make(g: torch.Generator) -> tuple:
        image = torch.randint(0, 256, (batch, channels, height, width), generator=g).to(dtype)
        return image, [3.0, 2.5], [13.0 + c for c in range(channels)]

    return make


def _em(batch: int, channels: int, pixels: int, bases: int, shared: bool, *options: Any) -> Callable:
    def make(g: torch.Generator) -> tuple:
        mu = _randn(g, 1 if shared else batch, channels, bases)
        return _randn(g, batch, channels, pixels), mu / mu.norm(dim=1, keepdim=True), *options

    return make


def _em_backward(batch: int, channels: int, pixels: int, bases: int, shared: bool, eps_mode: str) -> Callable:
    forward = _em(batch, channels, pixels, bases, shared)

    def make(g: torch.Generator) -> tuple:
        x, mu = forward(g)
        history, grad_history = _randn(g, 2, 2, batch, channels, bases, scale=0.3)
        norms = 1 + torch.rand(2, batch, 2, bases, generator=g, dtype=torch.float64)
        return _randn(g, *x.shape), grad_history, x, mu, history, norms, eps_mode

    return make


def _encoding(batch: int, channels: int, pixels: int, codes: int, grad: bool = False) -> Callable:
    def make(g: torch.Generator) -> tuple:
        scale = -0.5 * torch.rand(codes, generator=g, dtype=torch.float64) / channels**0.5
        inputs = _randn(g, batch, channels, pixels), _randn(g, codes, channels, scale=0.7), scale
        return (_randn(g, batch, codes, channels), *inputs) if grad else inputs

    return make


_FILTERED = {  # batch, channels, features, points, features shared by the batch
    "plane": (2, 3, 2, 67, False),
    "colour": (1, 21, 5, 50, False),
    "shared": (3, 1, 3, 33, True),
    "wide": (1, 40, 1, 19, False),
    "one_point": (1, 2, 4, 1, False),
    "empty_batch": (0, 2, 2, 10, False),
}

CASES: tuple[Case, ...] = (
    *(Case("permutohedral_filter", name, _filter(*sizes, False), (0,)) for name, sizes in _FILTERED.items()),
    *(Case("gaussian_filter_exact", name, _filter(*sizes), (0, 1)) for name, sizes in _FILTERED.items()),
    Case("permutohedral_filter", "reverse", _filter(1, 3, 3, 45, False, True), (0,)),
    Case(
        "gaussian_filter_exact_backward",
        "plane",
        lambda g: (_randn(g, 2, 3, 40), _randn(g, 2, 3, 40), _randn(g, 2, 2, 40)),
    ),
    Case(
        "gaussian_filter_exact_backward",
        "shared",
        lambda g: (_randn(g, 2, 5, 31), _randn(g, 2, 5, 31), _randn(g, 1, 3, 31)),
    ),
    Case("mean_field", "potts", _mean_field(2, 4, 61, False, 3, "symmetric", False), (0, 2)),
    Case("mean_field", "matrix", _mean_field(1, 21, 40, True, 2, "symmetric", True), (0, 2)),
    Case("mean_field", "before", _mean_field(2, 3, 35, True, 2, "before", False), (0, 2)),
    Case("mean_field", "after", _mean_field(2, 9, 35, False, 2, "after", True), (0, 2)),
    Case("mean_field", "none", _mean_field(1, 35, 20, False, 1, "none", False), (0, 2)),
    Case("mean_field", "no_iterations", _mean_field(1, 3, 20, False, 0, "symmetric", False), (0,)),
    Case("mean_field", "one_label", _mean_field(1, 1, 20, True, 2, "symmetric", False), (0, 2)),
    Case("mean_field", "one_point", _mean_field(1, 3, 1, False, 2, "symmetric", False), (0, 2)),
    Case("mean_field", "empty_batch", _mean_field(0, 3, 20, False, 2, "symmetric", False)),
    Case("mean_field_backward", "potts", _mean_field_backward(2, 4, 61, False, 3, "symmetric", False)),
    Case("mean_field_backward", "matrix", _mean_field_backward(2, 3, 35, True, 2, "after", True)),
    Case("dense_crf_features", "photo", _image(2, 3, 7, 9, torch.uint8)),
    Case("dense_crf_features", "float", _image(1, 3, 5, 8, torch.float64), (0,)),
    Case("dense_crf_features", "position_only", _image(1, 0, 5, 8, torch.uint8)),
    Case("dense_crf_features", "empty_batch", _image(0, 3, 5, 8, torch.uint8)),
    Case("em_attention", "shared", _em(2, 12, 107, 5, True, 3, "add"), (0, 1)),
    Case("em_attention", "each", _em(2, 5, 33, 4, False, 2, "clamp"), (0, 1)),
    Case("em_attention", "wide", _em(1, 33, 230, 64, True, 2, "add"), (0, 1)),
    Case("em_attention", "one_basis", _em(1, 3, 9, 1, False, 1, "add"), (0, 1)),
    Case("em_attention", "one_pixel", _em(2, 4, 1, 3, True, 2, "clamp"), (0,)),
    Case("em_attention", "empty_batch", _em(0, 4, 10, 3, True, 2, "add"), (0, 1)),
    Case("em_attention_backward", "shared", _em_backward(2, 12, 107, 5, True, "add")),
    Case("em_attention_backward", "each", _em_backward(1, 7, 40, 17, False, "clamp")),
    Case("encoding", "plain", _encoding(2, 12, 107, 5), (0, 1, 2)),
    Case("encoding", "wide", _encoding(1, 70, 130, 33), (0, 1, 2)),
    Case("encoding", "one_codeword", _encoding(2, 3, 20, 1), (0, 1)),
    Case("encoding", "one_pixel", _encoding(1, 5, 1, 4), (0, 1, 2)),
    Case("encoding", "empty_batch", _encoding(0, 4, 10, 3), (0, 1, 2)),
    Case("encoding_backward", "plain", _encoding(2, 12, 107, 5, True)),
    Case("encoding_backward", "wide", _encoding(1, 70, 30, 17, True)),
)
