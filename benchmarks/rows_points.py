"""Rows of point_sample and point_scatter: PointRend's training step, RoI grids of its mask head, its subdivision."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from bench_types import Inputs, Provider, Workload, doubled, with_gradients
from torch import Tensor

import segops


def random_points(count: int, gradient: bool) -> Inputs:
    """A stride-4 feature map and points anywhere on it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 256, 200, 304, generator=g).requires_grad_(gradient)
    return {"x": x, "points": torch.rand(4, count, 2, generator=g)}


def roi_grids(gradient: bool) -> Inputs:
    """14 x 14 regular points in each of 50 boxes of each of two images, as one list of points an image."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 256, 200, 304, generator=g).requires_grad_(gradient)
    corner, size = 0.8 * torch.rand(2, 50, 1, 2, generator=g), 0.02 + 0.18 * torch.rand(2, 50, 1, 2, generator=g)
    side = (torch.arange(14) + 0.5) / 14
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).flatten(0, 1)
    return {"x": x, "points": corner + size * grid}


def grid_sample(x: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(x, 2 * points.flatten(1, -2)[:, :, None] - 1, align_corners=False)[..., 0]


def detectron2(x: Tensor, points: Tensor) -> Tensor:
    """Its point_sample of a batch; of boxes its point_sample_fine_grained_features, one image after the other."""
    if points.dim() == 3:
        return grid_sample(x, points)
    return torch.cat([grid_sample(x[i : i + 1], points[i : i + 1]) for i in range(len(x))])


def sampler(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """The result, and its gradient where the map wants one."""

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        x, points = inputs["x"], inputs["points"]
        if not x.requires_grad:
            return lambda: [function(x, points)]
        grad = torch.randn(
            len(x), x.shape[1], points[0].numel() // 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        grad = grad.to(x)
        return lambda: with_gradients(lambda x: function(x, points), x, grad=grad)

    return prepare


def subdivision(gradient: bool) -> Inputs:
    """The last step on a picture of Cityscapes: 8,096 points of a quarter-size map."""
    g = torch.Generator().manual_seed(0)
    cells = torch.stack([torch.randperm(512 * 1024, generator=g)[:8096] for _ in range(2)])
    return {
        "input": torch.randn(2, 19, 512, 1024, generator=g).requires_grad_(gradient),
        "values": torch.randn(2, 19, 8096, generator=g).requires_grad_(gradient),
        "cells": cells,
    }


def scatter(input: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """detectron2's subdivision, which leaves open which of two values in one cell wins."""
    at = cells[:, None].expand(-1, input.shape[1], -1)
    return input.flatten(2).scatter(2, at, values).view(input.shape)


def scatterer(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        x, values, cells = inputs["input"], inputs["values"], inputs["cells"]
        if not x.requires_grad:
            return lambda: [function(x, cells, values)]
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x)
        return lambda: with_gradients(lambda x, values: function(x, cells, values), x, values, grad=grad)

    return prepare


def scattered_bytes(inputs: Inputs) -> int:
    """A copy of the map; with a gradient, another."""
    x = inputs["input"]
    return 2 * x.numel() * x.element_size() * (1 + x.requires_grad)


def scatter_oracle(inputs: Inputs) -> list[Tensor]:
    return scatterer(scatter)(doubled(inputs))()


def oracle(inputs: Inputs) -> list[Tensor]:
    return sampler(grid_sample)(doubled(inputs))()


def bytes_moved(inputs: Inputs) -> int:
    """Four cells a point and channel, its value; with a gradient, the value again and the map written once."""
    x, points = inputs["x"], inputs["points"]
    values = x.shape[1] * points.numel() // 2 * x.element_size()
    return 5 * values + (values + x.numel() * x.element_size() if x.requires_grad else 0)


def row(name: str, make: Callable[[], Inputs]) -> Workload:
    return Workload("point_sample", name, make, bytes_moved, oracle)


WORKLOADS = (
    row("4x256x200x304_2048_points", lambda: random_points(2048, False)),
    row("4x256x200x304_8096_points", lambda: random_points(8096, False)),
    row("2x256x200x304_100_boxes_14x14", lambda: roi_grids(False)),
    row("4x256x200x304_2048_points_forward_backward", lambda: random_points(2048, True)),
    row("4x256x200x304_8096_points_forward_backward", lambda: random_points(8096, True)),
    row("2x256x200x304_100_boxes_14x14_forward_backward", lambda: roi_grids(True)),
    Workload("point_scatter", "2x19x512x1024_8096_points", lambda: subdivision(False), scattered_bytes, scatter_oracle),
    Workload(
        "point_scatter",
        "2x19x512x1024_8096_points_forward_backward",
        lambda: subdivision(True),
        scattered_bytes,
        scatter_oracle,
    ),
)
PROVIDERS = (
    Provider("segops", "point_sample", sampler(lambda x, points: segops.point_sample(x, points.flatten(1, -2)))),
    Provider("grid_sample", "point_sample", sampler(detectron2)),
    Provider("segops", "point_scatter", scatterer(lambda *args: segops.point_scatter(*args))),
    Provider("scatter", "point_scatter", scatterer(scatter)),
)
