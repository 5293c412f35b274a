"""The Gaussian filter by brute force on a GPU: attention with a Gaussian kernel, never P x P in memory.

Idea. A program keeps the sums of a block of points i and goes over all points j, tile by tile: squared distances from
explicit differences (no |a|^2 + |b|^2 - 2 ab, which cancels), exponentials, and a product with the tile of values on
tensor cores. float32 is split into three TF32 products, which keeps about 22 bits; float64 does without tensor cores.

Memory. Values and features are read in whatever layout they have; only the results are written. Features that a batch
shares are the features of one item with the channels of all.

Cost. P^2 (D + V) multiply-adds, P^2 exponentials for every 64 channels; backward as much again and P^2 (2 V + 2 D).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2, tile_width
from segops.kernels.tile_product import product
from torch import Tensor


@triton.jit
def difference(features, i, j, points, stride_p):
    """f_j - f_i of one feature for the points of a tile."""
    here = tl.load(features + i * stride_p, mask=i < points, other=0.0)[:, None]
    there = tl.load(features + j * stride_p, mask=j < points, other=0.0)[None, :]
    return there - here


@triton.jit
def gaussian(features, i, j, points, stride_d, stride_p, DIM: tl.constexpr):
    """exp(-|f_i - f_j|^2 / 2) for the points of a tile."""
    distance = tl.zeros([i.shape[0], j.shape[0]], features.dtype.element_ty)
    if DIM <= 8:
        for _ in tl.static_range(DIM):
            apart = difference(features, i, j, points, stride_p)
            distance += apart * apart
            features += stride_d
    else:  # unrolled, the loads of so many features would not fit the registers
        for _ in range(DIM):
            apart = difference(features, i, j, points, stride_p)
            distance += apart * apart
            features += stride_d
    return tl.exp(-0.5 * distance)


@triton.jit
def filter_kernel(
    values, features, out, points, blocks, channels, value_n, value_c, value_p, feature_n, feature_d, feature_p,
    DIM: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """BLOCK_I points and CHANNELS channels of out (B, C, P)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    features += item * feature_n
    values += item * value_n
    total = tl.zeros([BLOCK_I, CHANNELS], values.dtype.element_ty)
    for begin in range(0, points, BLOCK_J):
        j = begin + tl.arange(0, BLOCK_J).to(tl.int64)
        mask = (j < points)[:, None] & (c < channels)[None, :]
        x = tl.load(values + j[:, None] * value_p + c[None, :] * value_c, mask=mask, other=0.0)
        total += product(gaussian(features, i, j, points, feature_d, feature_p, DIM), x)
    place = (item * channels + c[None, :]) * points + i[:, None]
    tl.store(out + place, total, mask=(i < points)[:, None] & (c < channels)[None, :])


@triton.jit
def feature_gradient_kernel(
    left, right, features, out, points, blocks, channels, feature_n, feature_d, feature_p,
    DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sum over j of k_ij (left_i . right_j) (f_j - f_i), for BLOCK_I points, to out (B, D, P)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    d = tl.arange(0, DIMS)[None, :]
    left += item * channels * points
    right += item * channels * points
    features += item * feature_n
    total = tl.zeros([BLOCK_I, DIMS], left.dtype.element_ty)
    for begin in range(0, points, BLOCK_J):
        j = begin + tl.arange(0, BLOCK_J).to(tl.int64)
        pull = tl.zeros([BLOCK_I, BLOCK_J], left.dtype.element_ty)
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS).to(tl.int64)
            mask_i = (i < points)[:, None] & (c < channels)[None, :]
            mask_j = (c < channels)[:, None] & (j < points)[None, :]
            x = tl.load(left + c[None, :] * points + i[:, None], mask=mask_i, other=0.0)
            y = tl.load(right + c[:, None] * points + j[None, :], mask=mask_j, other=0.0)
            pull += product(x, y)
        pull *= gaussian(features, i, j, points, feature_d, feature_p, DIM)
        feature = features
        for k in range(DIM):
            drawn = tl.sum(pull * difference(feature, i, j, points, feature_p), axis=1)
            total += tl.where(d == k, drawn[:, None], 0.0)
            feature += feature_d
    tl.store(out + (item * DIM + d) * points + i[:, None], total, mask=(i < points)[:, None] & (d < DIM))


def tile(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of the filter; float64 holds a three-dimensional product in registers.

    One stage: the pipeliner would fetch the unrolled features of several tiles ahead, more than the registers hold.
    """
    if dtype == torch.float64:
        return {"BLOCK_I": 16, "BLOCK_J": 8, "CHANNELS": 8}
    width = min(64, tile_width(channels))
    return {"BLOCK_I": 64, "BLOCK_J": 32, "CHANNELS": width, "num_warps": 8, "num_stages": 1}


def gradient_tile(dim: int, channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile of the feature gradient, the largest that does not spill."""
    dims = {"DIM": dim, "DIMS": next_power_of_2(dim)}
    if dtype == torch.float64:
        return {**dims, "BLOCK_I": 16, "BLOCK_J": 8, "CHANNELS": 8}
    width = 32 if channels > 16 else 16
    return {**dims, "BLOCK_I": 32, "BLOCK_J": 64, "CHANNELS": width, "num_warps": 8, "num_stages": 1}


def check(features: Tensor) -> None:
    if not torch.isfinite(features).all():
        raise ValueError("features: expected finite values, got NaN or inf")


def gaussian_filter_exact(values: Tensor, features: Tensor) -> Tensor:
    """values (N, V, P), features (N or 1, D, P) to (N, V, P)."""
    out = values.new_empty(values.shape)
    if out.numel() == 0:
        return out
    check(features)
    batch, dim, points = features.shape
    x = values.reshape(batch, -1, points)
    sizes = tile(x.shape[1], x.dtype)
    blocks = cdiv(points, sizes["BLOCK_I"])
    filter_kernel[batch * blocks, cdiv(x.shape[1], sizes["CHANNELS"])](
        x, features, out, points, blocks, x.shape[1], *x.stride(), *features.stride(), DIM=dim, **sizes
    )
    return out


def gaussian_filter_exact_backward(grad: Tensor, values: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of values and features; the filter is its own adjoint."""
    grad_features = torch.zeros_like(features, memory_format=torch.contiguous_format)
    grad_values = gaussian_filter_exact(grad, features)
    if values.numel() == 0:
        return grad_values, grad_features
    batch, dim, points = features.shape
    g, x = grad.reshape(batch, -1, points), values.reshape(batch, -1, points)
    left, right = torch.cat([g, x], 1), torch.cat([x, g], 1)  # (g_i, v_i) . (v_j, g_j): one product instead of two
    sizes = gradient_tile(dim, left.shape[1], x.dtype)
    blocks = cdiv(points, sizes["BLOCK_I"])
    feature_gradient_kernel[(batch * blocks,)](
        left, right, features, grad_features, points, blocks, left.shape[1], *features.stride(), **sizes
    )
    return grad_values, grad_features


_SIZES = [
    (pointer, dim, channels, dtype)
    for pointer, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64))
    for dim, channels in ((5, 21), (2, 3), (8, 64), (24, 64))
]
AOT = [
    entry
    for t, dim, channels, dtype in _SIZES
    for entry in (
        (filter_kernel, {"values": t, "features": t, "out": t}, [{"DIM": dim, **tile(channels, dtype)}]),
        (
            feature_gradient_kernel,
            {"left": t, "right": t, "features": t, "out": t},
            [gradient_tile(dim, 2 * channels, dtype)],
        ),
    )
]
