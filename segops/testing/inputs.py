"""How the arguments of operators are made from random numbers: one function for each form of them in cases.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference.criss_cross_attention import criss_cross_attention
from ..reference.nonlocal_attention import nonlocal_attention
from ..reference.upsample_cross_entropy import upsample_cross_entropy


def randn(g: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Standard normal numbers, in float64."""
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def filtered(batch: int, channels: int, dim: int, points: int, shared: bool, *rest: Any) -> Callable:
    """Values and features of a Gaussian filter."""

    def make(g: torch.Generator) -> tuple:
        return (randn(g, batch, channels, points), randn(g, 1 if shared else batch, dim, points, scale=1.5), *rest)

    return make


def mean_field(batch: int, labels: int, points: int, matrix: bool, *options: Any) -> Callable:
    """Logits, features of position and colour, and a compatibility."""

    def make(g: torch.Generator) -> tuple:
        features = [randn(g, 1, 2, points, scale=2.0), randn(g, batch, 3, points, scale=1.5)]
        shape = (2, labels, labels) if matrix else (2, labels)
        return randn(g, batch, labels, points), features, randn(g, *shape, scale=0.3), *options

    return make


def mean_field_backward(*args: Any) -> Callable:
    """A gradient before what the forward takes."""
    forward = mean_field(*args)

    def make(g: torch.Generator) -> tuple:
        logits, *rest = forward(g)
        return randn(g, *logits.shape), logits, *rest

    return make


def picture(batch: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Callable:
    """An image and the widths of its features."""

    def make(g: torch.Generator) -> tuple:
        image = torch.randint(0, 256, (batch, channels, height, width), generator=g).to(dtype)
        return image, [3.0, 2.5], [13.0 + c for c in range(channels)]

    return make


def label_map(g: torch.Generator, classes: int, *shape: int) -> Tensor:
    """Labels of 0 to classes - 1, about one in eight 255; the last class is absent where there are more than two."""
    target = torch.randint(0, max(2, classes - 1), shape, generator=g)
    return target.masked_fill(torch.rand(shape, generator=g) < 0.125, 255)


def counted(classes: int, dtype: torch.dtype, ignore_index: int | None, *shape: int, logits: bool = False) -> Callable:
    """Predicted labels or logits without arithmetic to do, and labels (N, P)."""

    def make(g: torch.Generator) -> tuple:
        target = label_map(g, classes, *shape)
        if ignore_index is None:
            target %= 2
        if logits:
            return coarse_numbers(g, shape[0], classes, shape[1]), target.to(dtype), classes, ignore_index
        return torch.randint(0, classes, shape, generator=g).to(dtype), target.to(dtype), classes, ignore_index

    return make


def parcelled(classes: int, dtype: torch.dtype, batch: int, height: int, width: int) -> Callable:
    """Labels (N, H, W) in squares of 3 with noise, each image with two labels at least."""

    def make(g: torch.Generator) -> tuple:
        squares = torch.randint(0, classes, (batch, (height + 2) // 3, (width + 2) // 3), generator=g)
        labels = squares.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width].clone()
        labels[torch.rand(labels.shape, generator=g) < 0.1] = 1
        labels[:, 0, 0] = 0
        return (labels.to(dtype),)

    return make


def softmax_loss(batch: int, channels: int, points: int, weighted: bool, *options: Any) -> Callable:
    """Logits and labels, and weights of the classes."""

    def make(g: torch.Generator) -> tuple:
        weight = torch.linspace(0.5, 2, channels, dtype=torch.float64) if weighted else None
        logits = randn(g, batch, channels, points, scale=2.0)
        return (logits if options[-1] else logits.sigmoid()), label_map(g, channels, batch, points), weight, *options

    return make


def pixel_sums(batch: int, channels: int, points: int, gamma: float, backward: bool = False) -> Callable:
    """Logits and labels, behind a gradient if it is for the backward."""

    def make(g: torch.Generator) -> tuple:
        grad = (randn(g, batch, 6, channels),) if backward else ()
        return *grad, randn(g, batch, channels, points, scale=2.0), label_map(g, channels, batch, points), 255, gamma

    return make


def upsampled(batch: int, channels: int, cells: tuple, size: tuple, weighted: bool, *options: Any) -> Callable:
    """Logits of low resolution and labels of a higher one, and weights of the classes."""

    def make(g: torch.Generator) -> tuple:
        weight = torch.linspace(0.5, 2, channels, dtype=torch.float64) if weighted else None
        logits = randn(g, batch, channels, *cells, scale=2.0)
        return logits, label_map(g, channels, batch, *size), weight, *options

    return make


def upsampled_backward(*args: Any) -> Callable:
    """What a forward pass keeps."""
    forward = upsampled(*args)

    def make(g: torch.Generator) -> tuple:
        logits, target, *rest = forward(g)
        lse = upsample_cross_entropy(logits, target, *rest)[1]
        return randn(g, *target.shape), logits, target, lse, *rest

    return make


def em(batch: int, channels: int, pixels: int, bases: int, shared: bool, *options: Any) -> Callable:
    """Pixels and bases."""

    def make(g: torch.Generator) -> tuple:
        mu = randn(g, 1 if shared else batch, channels, bases)
        return randn(g, batch, channels, pixels), mu / mu.norm(dim=1, keepdim=True), *options

    return make


def hinge_loss(batch: int, points: int, per_image: bool) -> Callable:
    """Logits and labels of two classes."""
    return lambda g: (randn(g, batch, points), label_map(g, 2, batch, points), per_image, 255)


def with_gradient(sets: int, forward: Callable) -> Callable:
    """The arguments of a backward whose forward has one result for each of so many sets."""
    return lambda g: (randn(g, sets), *forward(g))


def point_sets(batch: int, points: int, *maps: tuple[int, int, int], mode: str, padding: str, align: bool) -> Callable:
    """Points inside and outside; maps (C, H, W)."""

    def make(g: torch.Generator) -> tuple:
        at = 2.4 * torch.rand(batch, points, 2, generator=g, dtype=torch.float64) - 0.7
        return at, [randn(g, batch, *size) for size in maps], mode, padding, align

    return make


def em_backward(batch: int, channels: int, pixels: int, bases: int, shared: bool, eps_mode: str) -> Callable:
    """What a forward pass keeps, near enough: unit bases, norms above 0."""
    forward = em(batch, channels, pixels, bases, shared)

    def make(g: torch.Generator) -> tuple:
        x, mu = forward(g)
        history, grad_history = randn(g, 2, 2, batch, channels, bases, scale=0.3)
        norms = 1 + torch.rand(2, batch, 2, bases, generator=g, dtype=torch.float64)
        return randn(g, *x.shape), grad_history, x, mu, history, norms, eps_mode

    return make


def criss_cross(batch: int, dims: int, channels: int, height: int, width: int) -> Callable:
    """Queries, keys and values of one map."""
    shapes = [(batch, c, height, width) for c in (dims, dims, channels)]
    return lambda g: tuple(randn(g, *shape) for shape in shapes)


def criss_cross_backward(*sizes: int) -> Callable:
    """With the forward's own results, as `attended_backward`."""
    forward = criss_cross(*sizes)

    def make(g: torch.Generator) -> tuple:
        tensors = forward(g)
        out, lse = criss_cross_attention(*tensors)
        return randn(g, *out.shape), *tensors, out, lse

    return make


def attended(batch: int, dims: int, channels: int, queries: int, keys: int, scale: float) -> Callable:
    """Queries, and keys with values."""
    return lambda g: (
        randn(g, batch, dims, queries),
        randn(g, batch, dims, keys),
        randn(g, batch, channels, keys),
        scale,
    )


def attended_backward(*sizes: Any) -> Callable:
    """With the forward's own results: those of other softmaxes would make weights that no softmax has."""
    forward = attended(*sizes)

    def make(g: torch.Generator) -> tuple:
        query, key, value, scale = forward(g)
        out, lse = nonlocal_attention(query, key, value, scale)
        return randn(g, *out.shape), query, key, value, out, lse, scale

    return make


def interlaced(
    batch: int, dims: int, channels: int, size: tuple[int, int], *options: Any, backward: bool = False
) -> Callable:
    """Queries, keys and values of one map, and the groups."""
    crossed = criss_cross(batch, dims, channels, *size)

    def make(g: torch.Generator) -> tuple:
        tensors = crossed(g)
        return (*((randn(g, *tensors[-1].shape),) if backward else ()), *tensors, *options)

    return make


def concatenation(batch: int, channels: int, queries: int, keys: int, backward: bool = False) -> Callable:
    """Scores of queries and of keys, and values."""

    def make(g: torch.Generator) -> tuple:
        inputs = randn(g, batch, queries), randn(g, batch, keys), randn(g, batch, channels, keys)
        return (randn(g, batch, channels, queries), *inputs) if backward else inputs

    return make


def pyramid(batch: int, channels: int, height: int, width: int, rows: list, columns: list) -> Callable:
    """A map and the grids of its levels."""
    return lambda g: (randn(g, batch, channels, height, width), rows, columns)


def pyramid_backward(batch: int, channels: int, height: int, width: int, rows: list, columns: list) -> Callable:
    """A gradient of all levels' bins."""
    bins = sum(r * c for r, c in zip(rows, columns, strict=True))
    return lambda g: (randn(g, batch, channels, bins), height, width, rows, columns)


def encoding(batch: int, channels: int, pixels: int, codes: int, grad: bool = False) -> Callable:
    """Pixels, codewords and their scales."""

    def make(g: torch.Generator) -> tuple:
        scale = -0.5 * torch.rand(codes, generator=g, dtype=torch.float64) / channels**0.5
        inputs = randn(g, batch, channels, pixels), randn(g, codes, channels, scale=0.7), scale
        return (randn(g, batch, codes, channels), *inputs) if grad else inputs

    return make


def psa(mode: str, batch: int, channels: int, height: int, width: int, mask: tuple | None, softmax: bool) -> Callable:
    """``mask`` None is compact."""
    planes = mask[0] * mask[1] if mask else height * width

    def make(g: torch.Generator) -> tuple:
        value, attention = randn(g, batch, channels, height, width), randn(g, batch, planes, height, width)
        return value, attention, mode, *(mask or (0, 0)), mask is None, softmax

    return make


def depthwise(
    batch: int, channels: int, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int], shared: bool
) -> Callable:
    """A map and kernels, of each image or shared."""

    def make(g: torch.Generator) -> tuple:
        return randn(g, batch, channels, *size), randn(g, 1 if shared else batch, channels, *kernel), *dilation

    return make


def psa_backward(*args: Any) -> Callable:
    """With the statistics of a softmax: some sum above 0."""
    forward = psa(*args)

    def make(g: torch.Generator) -> tuple:
        value, attention, *options = forward(g)
        n, _, height, width = value.shape
        stats = 1 + torch.rand(n, 2, height * width if options[-1] else 0, generator=g, dtype=torch.float64)
        return randn(g, *value.shape), value, attention, randn(g, *value.shape), stats, *options

    return make


def depthwise_backward(
    batch: int, channels: int, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int], shared: bool
) -> Callable:
    """A gradient, a map, and the form of the kernels."""

    def make(g: torch.Generator) -> tuple:
        maps = randn(g, 2, batch, channels, *size).unbind()
        return *maps, 1 if shared else batch, *kernel, *dilation

    return make


def psa_mask(mode: str, batch: int, height: int, width: int, mask: tuple, backward: bool = False) -> Callable:
    """Masks, or the gradient of their matrix."""
    planes = height * width if backward else mask[0] * mask[1]
    return lambda g: (randn(g, batch, planes, height, width), mode, *mask)


def window(
    batch: int, channels: int, depth: int, size: tuple[int, int], window: tuple[int, int], backward: bool = False
) -> Callable:
    """Values, colours and the tables of a window, with a gradient before them."""

    def make(g: torch.Generator) -> tuple:
        values, grad = randn(g, 2, batch, channels, *size).unbind()
        colors, (spatial, bilateral) = randn(g, batch, depth, *size, scale=0.7), randn(g, 2, *window).unbind()
        return (grad, values, colors, bilateral) if backward else (values, colors, spatial, bilateral)

    return make


def update(
    batch: int,
    labels: int,
    size: tuple[int, int],
    each: bool,
    blur: int,
    softmax: bool,
    means: bool,
    backward: bool = False,
) -> Callable:
    """Logits, the message of their cells and weights of ``each`` label or one, with a gradient before them."""

    def make(g: torch.Generator) -> tuple:
        logits = randn(g, batch, labels, *size)
        message = randn(g, batch, labels, *(-(-length // blur) for length in size))
        inputs = logits, message, 1 + randn(g, labels if each else 1, scale=0.3)
        grad = (randn(g, *(message if means else logits).shape),) if backward else ()
        return *grad, *inputs, blur, softmax, means

    return make


def points_backward(forward: Callable, wanted: str) -> Callable:
    """The gradient of the first map, channels_last, or of the points."""

    def make(g: torch.Generator) -> tuple:
        at, maps, *options = forward(g)
        if wanted == "points":
            return randn(g, at.shape[0], sum(x.shape[1] for x in maps), at.shape[1]), at, maps, *options
        n, c, height, width = maps[0].shape
        return randn(g, n, c, at.shape[1]), at, height, width, wanted == "cells", *options

    return make


def scattered(batch: int, channels: int, height: int, width: int, points: int, backward: bool = False) -> Callable:
    """Cells drawn at random, some of them more than once."""

    def make(g: torch.Generator) -> tuple:
        x = randn(g, batch, channels, height, width)
        cells = torch.randint(height * width, (batch, points), generator=g)
        return (x, cells) if backward else (x, cells, randn(g, batch, channels, points))

    return make


def coarse_numbers(g: torch.Generator, *shape: int) -> Tensor:
    """Multiples of 1/16, exact in every dtype: margins tie often, and rounding can not change their order."""
    return (randn(g, *shape, scale=24).round() / 16).clamp(-8, 8)


def uncertain(batch: int, channels: int, height: int, width: int, k: int) -> Callable:
    """Logits without ties, and how many to take."""
    return lambda g: (coarse_numbers(g, batch, channels, height, width), k)


def candidates(batch: int, channels: int, height: int, width: int, drawn: int, others: int, k: int) -> Callable:
    """Logits and points of which the most uncertain are taken."""

    def points(g: torch.Generator, count: int) -> Tensor:  # some outside, and exact like the logits
        return (torch.rand(batch, count, 2, generator=g, dtype=torch.float64) * 72 - 4).round() / 64

    return lambda g: (
        coarse_numbers(g, batch, channels, height, width),
        points(g, drawn),
        points(g, others),
        k,
    )


@dataclass(frozen=True)
class Atrous:
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
        bias = randn(g, self.weight[0]) if self.bias else None
        return randn(g, *self.x), randn(g, *self.weight), bias, *self.options(), self.method

    def backward_input(self, g: torch.Generator) -> tuple:
        last = self.groups > 1
        return randn(g, *self.out()), randn(g, *self.weight), *self.x[2:], *self.options(), last, self.method

    def backward_weight(self, g: torch.Generator) -> tuple:
        return randn(g, *self.out()), randn(g, *self.x), list(self.weight[2:]), *self.options(), self.method


@dataclass(frozen=True)
class Aspp:
    """Branches of atrous spatial pyramid pooling: (K, kernel height, width, rate); ``x`` (N, C, H, W)."""

    x: tuple[int, int, int, int]
    branches: tuple[tuple[int, int, int, int], ...]
    sum: bool = False
    method: str = "skip"

    def weights(self, g: torch.Generator) -> list[Tensor]:
        return [randn(g, k, self.x[1], h, w) for k, h, w, _ in self.branches]

    def channels(self) -> int:
        return self.branches[0][0] if self.sum else sum(k for k, *_ in self.branches)

    def grad(self, g: torch.Generator) -> Tensor:
        return randn(g, self.x[0], self.channels(), *self.x[2:])

    def rates(self) -> list[int]:
        return [rate for *_, rate in self.branches]

    def forward(self, g: torch.Generator) -> tuple:
        return randn(g, *self.x), self.weights(g), randn(g, self.channels()), self.rates(), self.sum, self.method

    def backward_input(self, g: torch.Generator) -> tuple:
        return self.grad(g), self.weights(g), self.rates(), self.sum, not self.sum, self.method

    def backward_weight(self, g: torch.Generator) -> tuple:
        kernels = [size for _, h, w, _ in self.branches for size in (h, w)]
        counts = [k for k, *_ in self.branches]
        return self.grad(g), randn(g, *self.x), counts, kernels, self.rates(), self.sum, self.method
