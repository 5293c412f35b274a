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

from ..reference.nonlocal_attention import nonlocal_attention


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


def _labels(g: torch.Generator, classes: int, *shape: int) -> Tensor:
    """Labels of 0 to classes - 1, about one in eight 255; the last class is absent where there are more than two."""
    target = torch.randint(0, max(2, classes - 1), shape, generator=g)
    return target.masked_fill(torch.rand(shape, generator=g) < 0.125, 255)


def _softmax_loss(batch: int, channels: int, points: int, weighted: bool, *options: Any) -> Callable:
    def make(g: torch.Generator) -> tuple:
        weight = torch.linspace(0.5, 2, channels, dtype=torch.float64) if weighted else None
        logits = _randn(g, batch, channels, points, scale=2.0)
        return (logits if options[-1] else logits.sigmoid()), _labels(g, channels, batch, points), weight, *options

    return make


def _em(batch: int, channels: int, pixels: int, bases: int, shared: bool, *options: Any) -> Callable:
    def make(g: torch.Generator) -> tuple:
        mu = _randn(g, 1 if shared else batch, channels, bases)
        return _randn(g, batch, channels, pixels), mu / mu.norm(dim=1, keepdim=True), *options

    return make


def _hinge_loss(batch: int, points: int, per_image: bool) -> Callable:
    return lambda g: (_randn(g, batch, points), _labels(g, 2, batch, points), per_image, 255)


def _with_gradient(sets: int, forward: Callable) -> Callable:
    """The arguments of a backward whose forward has one result for each of so many sets."""
    return lambda g: (_randn(g, sets), *forward(g))


def _points(batch: int, points: int, *maps: tuple[int, int, int], mode: str, padding: str, align: bool) -> Callable:
    """Points inside and outside; maps (C, H, W)."""

    def make(g: torch.Generator) -> tuple:
        at = 2.4 * torch.rand(batch, points, 2, generator=g, dtype=torch.float64) - 0.7
        return at, [_randn(g, batch, *size) for size in maps], mode, padding, align

    return make


def _em_backward(batch: int, channels: int, pixels: int, bases: int, shared: bool, eps_mode: str) -> Callable:
    forward = _em(batch, channels, pixels, bases, shared)

    def make(g: torch.Generator) -> tuple:
        x, mu = forward(g)
        history, grad_history = _randn(g, 2, 2, batch, channels, bases, scale=0.3)
        norms = 1 + torch.rand(2, batch, 2, bases, generator=g, dtype=torch.float64)
        return _randn(g, *x.shape), grad_history, x, mu, history, norms, eps_mode

    return make


def _criss_cross(batch: int, dims: int, channels: int, height: int, width: int, backward: bool = False) -> Callable:
    def make(g: torch.Generator) -> tuple:
        small, large = (batch, dims, height, width), (batch, channels, height, width)
        shapes = (large, small, small, large, large) if backward else (small, small, large)
        return tuple(_randn(g, *shape) for shape in shapes)

    return make


def _nonlocal(batch: int, dims: int, channels: int, queries: int, keys: int, scale: float) -> Callable:
    return lambda g: (
        _randn(g, batch, dims, queries),
        _randn(g, batch, dims, keys),
        _randn(g, batch, channels, keys),
        scale,
    )


def _nonlocal_backward(*sizes: Any) -> Callable:
    """With the forward's own results: those of other softmaxes would make weights that no softmax has."""
    forward = _nonlocal(*sizes)

    def make(g: torch.Generator) -> tuple:
        query, key, value, scale = forward(g)
        out, lse = nonlocal_attention(query, key, value, scale)
        return _randn(g, *out.shape), query, key, value, out, lse, scale

    return make


def _interlaced(
    batch: int, dims: int, channels: int, size: tuple[int, int], *options: Any, backward: bool = False
) -> Callable:
    crossed = _criss_cross(batch, dims, channels, *size)

    def make(g: torch.Generator) -> tuple:
        tensors = crossed(g)
        return (*((_randn(g, *tensors[-1].shape),) if backward else ()), *tensors, *options)

    return make


def _concatenation(batch: int, channels: int, queries: int, keys: int, backward: bool = False) -> Callable:
    def make(g: torch.Generator) -> tuple:
        inputs = _randn(g, batch, queries), _randn(g, batch, keys), _randn(g, batch, channels, keys)
        return (_randn(g, batch, channels, queries), *inputs) if backward else inputs

    return make


def _pyramid(batch: int, channels: int, height: int, width: int, rows: list, columns: list) -> Callable:
    return lambda g: (_randn(g, batch, channels, height, width), rows, columns)


def _pyramid_backward(batch: int, channels: int, height: int, width: int, rows: list, columns: list) -> Callable:
    bins = sum(r * c for r, c in zip(rows, columns, strict=True))
    return lambda g: (_randn(g, batch, channels, bins), height, width, rows, columns)


def _encoding(batch: int, channels: int, pixels: int, codes: int, grad: bool = False) -> Callable:
    def make(g: torch.Generator) -> tuple:
        scale = -0.5 * torch.rand(codes, generator=g, dtype=torch.float64) / channels**0.5
        inputs = _randn(g, batch, channels, pixels), _randn(g, codes, channels, scale=0.7), scale
        return (_randn(g, batch, codes, channels), *inputs) if grad else inputs

    return make


def _psa(mode: str, batch: int, channels: int, height: int, width: int, mask: tuple | None, softmax: bool) -> Callable:
    """``mask`` None is compact."""
    planes = mask[0] * mask[1] if mask else height * width

    def make(g: torch.Generator) -> tuple:
        value, attention = _randn(g, batch, channels, height, width), _randn(g, batch, planes, height, width)
        return value, attention, mode, *(mask or (0, 0)), mask is None, softmax

    return make


def _depthwise(
    batch: int, channels: int, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int], shared: bool
) -> Callable:
    def make(g: torch.Generator) -> tuple:
        return _randn(g, batch, channels, *size), _randn(g, 1 if shared else batch, channels, *kernel), *dilation

    return make


def _psa_backward(*args: Any) -> Callable:
    forward = _psa(*args)

    def make(g: torch.Generator) -> tuple:
        value, attention, *options = forward(g)
        n, _, height, width = value.shape
        stats = 1 + torch.rand(n, 2, height * width if options[-1] else 0, generator=g, dtype=torch.float64)
        return _randn(g, *value.shape), value, attention, _randn(g, *value.shape), stats, *options

    return make


def _depthwise_backward(
    batch: int, channels: int, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int], shared: bool
) -> Callable:
    def make(g: torch.Generator) -> tuple:
        maps = _randn(g, 2, batch, channels, *size).unbind()
        return *maps, 1 if shared else batch, *kernel, *dilation

    return make


def _psa_mask(mode: str, batch: int, height: int, width: int, mask: tuple, backward: bool = False) -> Callable:
    planes = height * width if backward else mask[0] * mask[1]
    return lambda g: (_randn(g, batch, planes, height, width), mode, *mask)


def _window(
    batch: int, channels: int, depth: int, size: tuple[int, int], window: tuple[int, int], backward: bool = False
) -> Callable:
    def make(g: torch.Generator) -> tuple:
        values, grad = _randn(g, 2, batch, channels, *size).unbind()
        colors, (spatial, bilateral) = _randn(g, batch, depth, *size, scale=0.7), _randn(g, 2, *window).unbind()
        return (grad, values, colors, bilateral) if backward else (values, colors, spatial, bilateral)

    return make


def _points_backward(forward: Callable, wanted: str) -> Callable:
    """The gradient of the first map, channels_last, or of the points."""

    def make(g: torch.Generator) -> tuple:
        at, maps, *options = forward(g)
        if wanted == "points":
            return _randn(g, at.shape[0], sum(x.shape[1] for x in maps), at.shape[1]), at, maps, *options
        n, c, height, width = maps[0].shape
        return _randn(g, n, c, at.shape[1]), at, height, width, wanted == "cells", *options

    return make


def _scattered(batch: int, channels: int, height: int, width: int, points: int, backward: bool = False) -> Callable:
    """Cells drawn at random, some of them more than once."""

    def make(g: torch.Generator) -> tuple:
        x = _randn(g, batch, channels, height, width)
        cells = torch.randint(height * width, (batch, points), generator=g)
        return (x, cells) if backward else (x, cells, _randn(g, batch, channels, points))

    return make


def _coarse_numbers(g: torch.Generator, *shape: int) -> Tensor:
    """Multiples of 1/16, exact in every dtype: margins tie often, and rounding can not change their order."""
    return (_randn(g, *shape, scale=24).round() / 16).clamp(-8, 8)


def _uncertain(batch: int, channels: int, height: int, width: int, k: int) -> Callable:
    return lambda g: (_coarse_numbers(g, batch, channels, height, width), k)


def _candidates(batch: int, channels: int, height: int, width: int, drawn: int, others: int, k: int) -> Callable:
    def points(g: torch.Generator, count: int) -> Tensor:  # some outside, and exact like the logits
        return (torch.rand(batch, count, 2, generator=g, dtype=torch.float64) * 72 - 4).round() / 64

    return lambda g: (
        _coarse_numbers(g, batch, channels, height, width),
        points(g, drawn),
        points(g, others),
        k,
    )


@dataclass(frozen=True)
class _Atrous:
    """Sizes of a convolution with holes; ``x`` (N, C, H, W), ``weight`` (K, C / groups, h, w)."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    method: str = "skip"
    bias: bool = True

    def options(self) -> tuple:
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def out(self) -> tuple[int, ...]:
        return (
            self.x[0],
            self.weight[0],
            *(
                (self.x[2 + a] + 2 * self.padding[a] - self.dilation[a] * (self.weight[2 + a] - 1) - 1)
                // self.stride[a]
                + 1
                for a in (0, 1)
            ),
        )

    def forward(self, g: torch.Generator) -> tuple:
        bias = _randn(g, self.weight[0]) if self.bias else None
        return _randn(g, *self.x), _randn(g, *self.weight), bias, *self.options(), self.method

    def backward_input(self, g: torch.Generator) -> tuple:
        last = self.groups > 1
        return _randn(g, *self.out()), _randn(g, *self.weight), *self.x[2:], *self.options(), last, self.method

    def backward_weight(self, g: torch.Generator) -> tuple:
        return _randn(g, *self.out()), _randn(g, *self.x), list(self.weight[2:]), *self.options(), self.method


@dataclass(frozen=True)
class _Pyramid:
    """Branches of atrous spatial pyramid pooling: (K, kernel height, width, rate); ``x`` (N, C, H, W)."""

    x: tuple[int, int, int, int]
    branches: tuple[tuple[int, int, int, int], ...]
    sum: bool = False
    method: str = "skip"

    def weights(self, g: torch.Generator) -> list[Tensor]:
        return [_randn(g, k, self.x[1], h, w) for k, h, w, _ in self.branches]

    def channels(self) -> int:
        return self.branches[0][0] if self.sum else sum(k for k, *_ in self.branches)

    def grad(self, g: torch.Generator) -> Tensor:
        return _randn(g, self.x[0], self.channels(), *self.x[2:])

    def rates(self) -> list[int]:
        return [rate for *_, rate in self.branches]

    def forward(self, g: torch.Generator) -> tuple:
        return _randn(g, *self.x), self.weights(g), _randn(g, self.channels()), self.rates(), self.sum, self.method

    def backward_input(self, g: torch.Generator) -> tuple:
        return self.grad(g), self.weights(g), self.rates(), self.sum, not self.sum, self.method

    def backward_weight(self, g: torch.Generator) -> tuple:
        kernels = [size for _, h, w, _ in self.branches for size in (h, w)]
        counts = [k for k, *_ in self.branches]
        return self.grad(g), _randn(g, *self.x), counts, kernels, self.rates(), self.sum, self.method


_FILTERED = {  # batch, channels, features, points, features shared by the batch
    "plane": (2, 3, 2, 67, False),
    "colour": (1, 21, 5, 50, False),
    "shared": (3, 1, 3, 33, True),
    "wide": (1, 40, 1, 19, False),
    "one_point": (1, 2, 4, 1, False),
    "empty_batch": (0, 2, 2, 10, False),
}

_SOFTMAX_LOSSES = {  # batch, channels, points, weights; classes, present, per image, ignore_index, from logits
    "batch": (2, 5, 67, False, [0, 1, 2, 3, 4], True, False, 255, True),
    "images": (3, 4, 35, True, [0, 1, 2, 3], True, True, 255, True),
    "all": (2, 21, 50, False, list(range(21)), False, False, 255, True),
    "list": (2, 5, 33, True, [3, 1], False, True, 255, True),
    "probabilities": (2, 3, 33, False, [0, 1, 2], True, False, 255, False),
    "binary": (2, 1, 41, False, [0], True, True, 255, True),
    "one_pixel": (1, 3, 1, False, [0, 1, 2], True, False, 255, True),
    "empty_batch": (0, 3, 10, False, [0, 1, 2], True, True, 255, True),
}

_SAMPLED = {
    "zeros": _points(2, 37, (3, 7, 11), mode="bilinear", padding="zeros", align=False),
    "pyramid": _points(2, 20, (9, 6, 5), (2, 3, 4), mode="bilinear", padding="border", align=True),
    "reflection": _points(1, 70, (10, 4, 9), mode="bilinear", padding="reflection", align=False),
    "nearest": _points(1, 33, (9, 5, 8), mode="nearest", padding="zeros", align=False),
    "one_cell": _points(2, 9, (8, 1, 1), mode="bilinear", padding="zeros", align=False),
    "empty_points": _points(2, 0, (3, 4, 5), mode="bilinear", padding="zeros", align=False),
    "empty_batch": _points(0, 9, (3, 4, 5), mode="bilinear", padding="zeros", align=False),
}

_SCATTERED = {
    "map": (2, 3, 5, 7, 20),
    "one_cell": (1, 2, 1, 1, 3),
    "empty_points": (2, 3, 4, 5, 0),
    "empty_batch": (0, 3, 4, 5, 6),
}

_CRISS_CROSSED = {  # batch, dims, channels, height, width
    "rectangle": (2, 3, 5, 7, 4),
    "wide": (1, 2, 35, 3, 19),
    "tall": (1, 5, 4, 18, 9),
    "row": (1, 2, 3, 1, 6),
    "column": (1, 2, 3, 6, 1),
    "one_pixel": (2, 2, 3, 1, 1),
    "empty_batch": (0, 2, 3, 4, 5),
}

_NONLOCAL = {  # batch, dims, channels, queries, keys, scale
    "map": (2, 5, 7, 20, 20, 0.5),
    "blocks": (1, 3, 5, 100, 40, 1.0),
    "deep": (1, 40, 3, 9, 17, 0.3),
    "pooled": (2, 4, 10, 33, 6, -0.7),
    "one_key": (2, 3, 4, 9, 1, 1.0),
    "one_query": (1, 3, 4, 1, 50, 1.0),
    "empty_batch": (0, 3, 4, 9, 5, 1.0),
}

_CONCATENATED = {  # batch, channels, queries, keys
    "plain": (2, 5, 40, 33),
    "wide": (1, 35, 130, 97),
    "one_key": (2, 3, 7, 1),
    "one_query": (1, 17, 1, 9),
    "empty_batch": (0, 3, 4, 5),
}

_PYRAMIDS = {  # batch, channels, height, width, rows and columns of the levels
    "published": (2, 3, 17, 13, [1, 3, 6, 8], [1, 3, 6, 8]),
    "uneven": (1, 5, 9, 35, [2, 1], [5, 4]),
    "more_bins_than_pixels": (1, 2, 3, 2, [7, 1, 2], [5, 3, 2]),
    "many_bins": (1, 2, 40, 33, [40, 3], [33, 2]),
    "one_pixel": (2, 3, 1, 1, [1, 3], [1, 3]),
    "empty_batch": (0, 3, 4, 5, [1, 2], [1, 2]),
}

_ATTENDED = {  # mode, batch, channels, height, width, mask, softmax
    "over_complete": ("collect", 2, 5, 4, 6, (7, 11), True),
    "distribute": ("distribute", 1, 3, 9, 5, (17, 9), True),
    "small": ("collect", 2, 37, 12, 5, (3, 5), True),
    "small_distribute": ("distribute", 1, 4, 11, 7, (5, 3), True),
    "without_softmax": ("collect", 1, 3, 11, 9, (5, 3), False),
    "distribute_without_softmax": ("distribute", 2, 4, 3, 4, (9, 11), False),
    "compact": ("collect", 1, 4, 5, 6, None, True),
    "compact_distribute": ("distribute", 2, 3, 4, 3, None, True),
    "row": ("collect", 1, 2, 1, 7, (1, 13), True),
    "column": ("distribute", 1, 2, 6, 1, (5, 1), True),
    "wide": ("distribute", 1, 100, 11, 10, (21, 19), True),  # several tiles of positions and of channels
    "empty_batch": ("collect", 0, 3, 4, 5, (7, 9), True),
}

_MASKED = {  # mode, batch, height, width, mask
    "over_complete": ("collect", 2, 4, 6, (7, 11)),
    "distribute": ("distribute", 1, 9, 5, (17, 9)),
    "small": ("collect", 1, 12, 11, (3, 5)),
    "over": ("distribute", 1, 3, 4, (9, 11)),
    "one_position": ("collect", 1, 1, 1, (3, 5)),
    "empty_batch": ("collect", 0, 4, 5, (7, 9)),
}

_INTERLACED = {  # batch, dims, channels, height and width; block, relation, scale
    "lattices": (2, 3, 5, (4, 6), [2, 3], "global", 0.6),
    "ragged_lattices": (1, 2, 3, (3, 95), [2, 10], "global", -0.5),
    "ragged_blocks": (1, 33, 4, (5, 13), [4, 8], "local", 0.2),
    "one_block": (2, 2, 3, (4, 3), [8, 16], "local", 1.0),
    "one_pixel_each": (1, 2, 3, (4, 3), [8, 16], "global", 1.0),
    "empty_batch": (0, 2, 3, (4, 5), [8, 8], "global", 1.0),
}

_ATROUS = {
    "same": _Atrous((2, 5, 9, 12), (7, 5, 3, 3), (3, 2), (3, 2)),
    "rate_beyond_the_map": _Atrous((1, 3, 5, 6), (4, 3, 3, 3), (7, 4), (7, 4)),
    "groups": _Atrous((1, 6, 7, 7), (4, 3, 3, 3), (2, 2), (2, 2), groups=2, bias=False),
    "wide": _Atrous((1, 37, 6, 21), (35, 37, 3, 3), (2, 6), (2, 6)),
    "valid": _Atrous((2, 3, 9, 8), (2, 3, 2, 3), (2, 3), (0, 0)),
    "more_padding": _Atrous((1, 2, 4, 5), (3, 2, 3, 2), (2, 1), (5, 3)),
    "stride": _Atrous((2, 4, 9, 11), (4, 2, 3, 3), (2, 3), (2, 3), stride=(2, 3), groups=2),
    "one_tap": _Atrous((2, 6, 4, 5), (5, 6, 1, 1), (1, 1), (0, 0)),
    "dense": _Atrous((2, 5, 9, 12), (7, 5, 3, 3), (3, 2), (3, 2), method="dense"),
    "empty_batch": _Atrous((0, 5, 6, 7), (4, 5, 3, 3), (2, 2), (2, 2)),
}

_ASPPS = {
    "branches": _Pyramid((2, 5, 9, 12), ((3, 1, 1, 1), (4, 3, 3, 2), (2, 3, 5, 4))),
    "sum": _Pyramid((2, 5, 9, 8), ((6, 3, 3, 2), (6, 1, 1, 1), (6, 3, 3, 9)), sum=True),
    "wide": _Pyramid((1, 33, 5, 17), ((35, 3, 3, 3), (40, 3, 3, 6))),
    "dense": _Pyramid((2, 5, 9, 12), ((3, 1, 1, 1), (4, 3, 3, 2)), method="dense"),
    "empty_batch": _Pyramid((0, 4, 5, 6), ((3, 3, 3, 2), (3, 3, 3, 4))),
}

_DEPTHWISE = {  # batch, channels, map, kernel, dilation, kernels shared by the batch
    "each": (2, 3, (9, 21), (3, 3), (2, 3), False),
    "shared": (3, 5, (18, 17), (3, 3), (6, 6), True),
    "wide": (1, 5, (5, 35), (5, 7), (1, 2), True),
    "beyond": (2, 2, (4, 6), (3, 5), (9, 4), False),
    "row": (2, 3, (1, 33), (1, 3), (1, 20), False),
    "one_pixel": (1, 2, (1, 1), (3, 3), (1, 1), True),
    "empty_batch": (0, 3, (4, 5), (3, 3), (1, 1), True),
}

_WINDOWS = {  # batch, channels, colours, map, window
    "photo": (2, 3, 3, (6, 9), (3, 5)),
    "tiles": (1, 9, 2, (10, 70), (3, 3)),
    "wide": (1, 40, 1, (5, 7), (3, 3)),
    "beyond": (1, 2, 3, (3, 4), (7, 9)),
    "no_colours": (2, 3, 0, (6, 5), (3, 5)),
    "one_pixel": (1, 2, 3, (1, 1), (3, 3)),
    "empty_batch": (0, 3, 3, (4, 5), (3, 3)),
}

CASES: tuple[Case, ...] = (
    *(Case("aspp", name, p.forward, (0, 1, 2)) for name, p in _ASPPS.items()),
    *(Case("aspp_backward_input", name, p.backward_input) for name, p in _ASPPS.items()),
    *(Case("aspp_backward_weight", name, p.backward_weight) for name, p in _ASPPS.items()),
    *(Case("atrous_conv2d", name, c.forward, (0, 1, 2) if c.bias else (0, 1)) for name, c in _ATROUS.items()),
    *(Case("atrous_conv2d_backward_input", name, c.backward_input, (0, 1)) for name, c in _ATROUS.items()),
    *(Case("atrous_conv2d_backward_weight", name, c.backward_weight, (0, 1)) for name, c in _ATROUS.items()),
    *(
        Case(
            "conv_crf_message",
            name,
            _window(*sizes),
            (0, 1, 2, 3) if name not in ("one_pixel", "no_colours") else (0, 2, 3),
        )
        for name, sizes in _WINDOWS.items()
    ),
    *(Case("conv_crf_message_backward", name, _window(*sizes, True)) for name, sizes in _WINDOWS.items()),
    *(Case("dynamic_depthwise_conv2d", name, _depthwise(*sizes), (0, 1)) for name, sizes in _DEPTHWISE.items()),
    *(
        Case("dynamic_depthwise_conv2d_backward_kernels", name, _depthwise_backward(*sizes), (0, 1))
        for name, sizes in _DEPTHWISE.items()
    ),
    *(
        Case("criss_cross_attention", name, _criss_cross(*sizes), (2,) if name == "one_pixel" else (0, 1, 2))
        for name, sizes in _CRISS_CROSSED.items()
    ),
    *(Case("criss_cross_attention_backward", n, _criss_cross(*s, backward=True)) for n, s in _CRISS_CROSSED.items()),
    *(Case("psa", name, _psa(*sizes), (0, 1)) for name, sizes in _ATTENDED.items()),
    *(Case("psa_backward", name, _psa_backward(*sizes)) for name, sizes in _ATTENDED.items()),
    *(Case("psa_mask", name, _psa_mask(*sizes), (0,)) for name, sizes in _MASKED.items()),
    *(Case("psa_mask_backward", name, _psa_mask(*sizes, True)) for name, sizes in _MASKED.items()),
    *(
        Case("interlaced_attention", name, _interlaced(*sizes), (2,) if name == "one_pixel_each" else (0, 1, 2))
        for name, sizes in _INTERLACED.items()
    ),
    *(
        Case("interlaced_attention_backward", name, _interlaced(*_INTERLACED[name], backward=True))
        for name in ("lattices", "ragged_blocks", "empty_batch")
    ),
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
    Case("lovasz_grad", "rows", lambda g: ((torch.rand(3, 37, generator=g) < 0.3).double(),)),
    Case("lovasz_grad", "no_foreground", lambda g: (torch.zeros(2, 5, dtype=torch.float64),)),
    Case("lovasz_grad", "empty_rows", lambda g: (torch.zeros(2, 0, dtype=torch.float64),)),
    *(Case("lovasz_softmax", name, _softmax_loss(*sizes), (0,)) for name, sizes in _SOFTMAX_LOSSES.items()),
    Case("lovasz_softmax_backward", "batch", _with_gradient(1, _softmax_loss(*_SOFTMAX_LOSSES["batch"]))),
    Case("lovasz_softmax_backward", "images", _with_gradient(3, _softmax_loss(*_SOFTMAX_LOSSES["images"]))),
    Case("lovasz_hinge", "images", _hinge_loss(3, 61, True), (0,)),
    Case("lovasz_hinge", "batch", _hinge_loss(2, 130, False), (0,)),
    Case("lovasz_hinge", "one_pixel", _hinge_loss(1, 1, True), (0,)),
    Case("lovasz_hinge", "empty_batch", _hinge_loss(0, 9, True), (0,)),
    Case("lovasz_hinge_backward", "images", _with_gradient(3, _hinge_loss(3, 61, True))),
    Case("lovasz_hinge_backward", "batch", _with_gradient(1, _hinge_loss(2, 130, False))),
    Case("dense_crf_features", "photo", _image(2, 3, 7, 9, torch.uint8)),
    Case("dense_crf_features", "float", _image(1, 3, 5, 8, torch.float64), (0,)),
    Case("dense_crf_features", "position_only", _image(1, 0, 5, 8, torch.uint8)),
    Case("dense_crf_features", "empty_batch", _image(0, 3, 5, 8, torch.uint8)),
    *(Case("point_sample", name, make, (0, 1)) for name, make in _SAMPLED.items()),
    *(
        Case(f"point_sample_backward_{operator}", f"{wanted}_{name}", _points_backward(make, wanted))
        for operator, kinds in (("input", ("planes", "cells")), ("points", ("points",)))
        for wanted in kinds
        for name, make in _SAMPLED.items()
    ),
    *(Case("point_scatter", name, _scattered(*sizes), (0, 2)) for name, sizes in _SCATTERED.items()),
    *(Case("point_scatter_backward", name, _scattered(*sizes, True)) for name, sizes in _SCATTERED.items()),
    Case("topk_uncertain_grid", "classes", _uncertain(2, 5, 9, 13, 20)),
    Case("topk_uncertain_grid", "mask", _uncertain(3, 1, 7, 40, 33)),
    Case("topk_uncertain_grid", "all_cells", _uncertain(1, 3, 5, 7, 35)),
    Case("topk_uncertain_grid", "blocks", _uncertain(1, 2, 61, 97, 300)),
    Case("topk_uncertain_grid", "no_cells", _uncertain(2, 4, 3, 3, 0)),
    Case("topk_uncertain_grid", "empty_batch", _uncertain(0, 4, 3, 3, 5)),
    Case("subdivide", "classes", _uncertain(2, 5, 6, 9, 20)),
    Case("subdivide", "mask", _uncertain(3, 1, 7, 20, 33)),
    Case("subdivide", "blocks", _uncertain(1, 3, 40, 67, 300)),
    Case("subdivide", "one_cell", _uncertain(1, 4, 1, 1, 4)),
    Case("subdivide", "no_points", _uncertain(2, 4, 1, 5, 0)),
    Case("subdivide", "empty_batch", _uncertain(0, 4, 3, 3, 5)),
    Case("uncertain_points", "classes", _candidates(2, 5, 6, 9, 70, 5, 20)),
    Case("uncertain_points", "mask", _candidates(3, 1, 7, 20, 90, 0, 33)),
    Case("uncertain_points", "one_cell", _candidates(1, 4, 1, 1, 12, 3, 4)),
    Case("uncertain_points", "no_candidates", _candidates(2, 4, 3, 5, 0, 3, 0)),
    Case("uncertain_points", "empty_batch", _candidates(0, 4, 3, 3, 10, 1, 5)),
    Case("em_attention", "shared", _em(2, 12, 107, 5, True, 3, "add"), (0, 1)),
    Case("em_attention", "each", _em(2, 5, 33, 4, False, 2, "clamp"), (0, 1)),
    Case("em_attention", "wide", _em(1, 33, 230, 64, True, 2, "add"), (0, 1)),
    Case("em_attention", "one_basis", _em(1, 3, 9, 1, False, 1, "add"), (0, 1)),
    Case("em_attention", "one_pixel", _em(2, 4, 1, 3, True, 2, "clamp"), (0,)),
    Case("em_attention", "empty_batch", _em(0, 4, 10, 3, True, 2, "add"), (0, 1)),
    Case("em_attention_backward", "shared", _em_backward(2, 12, 107, 5, True, "add")),
    Case("em_attention_backward", "each", _em_backward(1, 7, 40, 17, False, "clamp")),
    *(
        Case("nonlocal_attention", name, _nonlocal(*sizes), (2,) if name == "one_key" else (0, 1, 2))
        for name, sizes in _NONLOCAL.items()
    ),
    *(  # of one key the softmax has no gradient: there is nothing but rounding to compare
        Case("nonlocal_attention_backward", name, _nonlocal_backward(*sizes))
        for name, sizes in _NONLOCAL.items()
        if name != "one_key"
    ),
    *(Case("nonlocal_concatenation", n, _concatenation(*s), (0, 1, 2)) for n, s in _CONCATENATED.items()),
    *(Case("nonlocal_concatenation_backward", n, _concatenation(*s, True)) for n, s in _CONCATENATED.items()),
    *(Case("pyramid_pool", name, _pyramid(*sizes), (0,)) for name, sizes in _PYRAMIDS.items()),
    *(Case("pyramid_pool_backward", name, _pyramid_backward(*sizes), (0,)) for name, sizes in _PYRAMIDS.items()),
    Case("encoding", "plain", _encoding(2, 12, 107, 5), (0, 1, 2)),
    Case("encoding", "wide", _encoding(1, 70, 130, 33), (0, 1, 2)),
    Case("encoding", "one_codeword", _encoding(2, 3, 20, 1), (0, 1)),
    Case("encoding", "one_pixel", _encoding(1, 5, 1, 4), (0, 1, 2)),
    Case("encoding", "empty_batch", _encoding(0, 4, 10, 3), (0, 1, 2)),
    Case("encoding_backward", "plain", _encoding(2, 12, 107, 5, True)),
    Case("encoding_backward", "wide", _encoding(1, 70, 30, 17, True)),
)
