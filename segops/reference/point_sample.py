"""Sampling of maps at points: F.grid_sample with points in [0, 1], defined for points that are not finite too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("bilinear", "nearest")  # in the order of the numbers that torch gives them
PADDINGS = ("zeros", "border", "reflection")


def grid_and_undefined(points: Tensor, padding_mode: str) -> tuple[Tensor, Tensor]:
    """points (N, P, 2) to grid_sample's grid (N, P, 1, 2), and which points (N, P) have no value.

    Points far away are moved to where the padding has the same value, since grid_sample overflows on them: two sides
    outside lies nothing but zeros or the border, and reflections repeat with period 2.
    """
    undefined = points.isnan() | points.isinf() if padding_mode == "reflection" else points.isnan()
    points = points.masked_fill(undefined, 0)
    points = points.fmod(2) if padding_mode == "reflection" else points.clamp(-3, 4)
    return (2 * points - 1)[:, :, None], undefined.any(-1)


def point_sample(points: Tensor, inputs: list[Tensor], mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """points (N, P, 2) and maps (N, C, H, W) to (N, sum of C, P)."""
    grid, undefined = grid_and_undefined(points, padding_mode)
    out = torch.cat([F.grid_sample(x, grid, mode, padding_mode, align_corners)[..., 0] for x in inputs], 1)
    return out.masked_fill(undefined[:, None], torch.nan)


def _backward(
    grad: Tensor, points: Tensor, x: Tensor, mode: str, padding_mode: str, align_corners: bool, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """grid_sample's gradients of the input and of the points; grad (N, C, P), x (N, C, H, W)."""
    grid, undefined = grid_and_undefined(points, padding_mode)
    grad = grad.masked_fill(undefined[:, None], 0)
    grad_x, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
        grad[..., None].contiguous(), x, grid, MODES.index(mode), PADDINGS.index(padding_mode), align_corners, mask
    )
    return grad_x, 2 * grad_grid[:, :, 0].masked_fill(undefined[..., None], 0)


def point_sample_backward_input(
    grad: Tensor,
    points: Tensor,
    height: int,
    width: int,
    channels_last: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """The gradient (N, C, H, W) of one map; grad (N, C, P) is that of its channels."""
    x = grad.new_zeros(*grad.shape[:2], height, width)
    out, _ = _backward(grad, points, x, mode, padding_mode, align_corners, [True, True])
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def point_sample_backward_points(
    grad: Tensor, points: Tensor, inputs: list[Tensor], mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """The gradient (N, P, 2) of the points; grad (N, sum of C, P)."""
    out = torch.zeros_like(points, memory_format=torch.contiguous_format)
    for x, g in zip(inputs, grad.split([x.shape[1] for x in inputs], 1), strict=True):
        out += _backward(g, points, x, mode, padding_mode, align_corners, [False, True])[1]
    return out
