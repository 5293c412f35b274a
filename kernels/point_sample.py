"""Sampling of maps at points on a GPU: values, gradients of the map, gradients of the points.

Idea. A program has a block of points and of channels, works out once which four cells each point reads (at most), and
goes to them for each channel. Neighbouring lanes hold neighbouring points, so the results are written in sequence; what
is read lies where the points do.

The gradient of a map is added with atomics, in no fixed order. Under torch.use_deterministic_algorithms the taps of all
points are sorted by the cell that they fall into, stably; each run of equal cells is then summed by one lane, in the
order of the points. That needs 32 bytes for each of N x P x 4 taps, and a sort.

Memory. Maps and gradients are read in whatever layout they have. Cost: N P (4 C + 20) multiply-adds, 4 N P C reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor

MODES = ("bilinear", "nearest")
PADDINGS = ("zeros", "border", "reflection")
BLOCK, CHANNELS = 64, 8
SAMPLE = {"CHANNELS": CHANNELS, "num_warps": 8}  # with fewer, reflection in float64 spills on sm_80


@triton.jit
def coordinate(p, size, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """p in units of a side of `size` cells, in cells, and the derivative; NaN where there is no value."""
    span = size - 1 if ALIGN else size
    slope = tl.zeros_like(p) + span
    if PADDING == 2:  # reflections repeat with period 2, exactly
        slope = tl.where(p < 0, -slope, slope)
        p = tl.abs(p)
        p -= 2 * tl.floor(p * 0.5)
        slope = tl.where(p > 1, -slope, slope)
        p = tl.where(p > 1, 2 - p, p)
    shift = 0.0 if ALIGN else 0.5
    x = tl.where(tl.abs(p) == float("inf"), p, p * span - shift)  # infinite times a span of 0 would be NaN
    if PADDING != 0:
        slope = tl.where((x <= 0) | (x >= size - 1), tl.zeros_like(slope), slope)
        x = tl.where(x <= 0, tl.zeros_like(x), x)
        x = tl.where(x >= size - 1, tl.zeros_like(x) + (size - 1), x)
    return x, slope


@triton.jit
def axis(p, size, NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """The first of the two cells, the weight of the second, its derivative, and whether there is a value."""
    x, slope = coordinate(p, size, PADDING, ALIGN)
    defined = x == x
    x = tl.where((x >= -1) & (x <= size), x, tl.zeros_like(x) - 4)  # far outside: all its cells are out of bounds
    low = tl.floor(x)
    fraction = x - low
    if NEAREST:  # halves go to the even cell
        odd = low - 2 * tl.floor(low * 0.5) == 1
        low += tl.where((fraction > 0.5) | ((fraction == 0.5) & odd), 1.0, 0.0).to(p.dtype)
        fraction = tl.zeros_like(x)
        slope = fraction
    return low.to(tl.int64), fraction, slope, defined


@triton.jit
def place(xy, item, p, points, height, width, NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """Column, row, their fractions and slopes of a block of points, and which of them have a value."""
    xy += (item * points + p) * 2
    x, fx, sx, defined_x = axis(tl.load(xy, mask=p < points, other=0.0), width, NEAREST, PADDING, ALIGN)
    y, fy, sy, defined_y = axis(tl.load(xy + 1, mask=p < points, other=0.0), height, NEAREST, PADDING, ALIGN)
    return x, y, fx, fy, sx, sy, defined_x & defined_y


@triton.jit
def tap(x, y, fx, fy, i, j, height, width, NEAREST: tl.constexpr):
    """Row i, column j of the four cells of a point: the cell, its weight, and whether it is in bounds."""
    row, column = y + i, x + j
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if NEAREST:
        inside = inside & (i + j == 0)
    wy = fy if i == 1 else 1 - fy
    wx = fx if j == 1 else 1 - fx
    return row, column, wy * wx, inside


@triton.jit
def sample_kernel(
    xy, map, out, points, blocks, channels, height, width, map_n, map_c, map_h, map_w, out_n,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Some channels of out (N, C, P) at a block of points of one image."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    x, y, fx, fy, sx, sy, defined = place(xy, item, p, points, height, width, NEAREST, PADDING, ALIGN)
    mask = (c < channels) & (p < points)[None, :]
    total = tl.zeros([CHANNELS, BLOCK], map.dtype.element_ty)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            row, column, weight, inside = tap(x, y, fx, fy, i, j, height, width, NEAREST)
            here = map + item * map_n + c * map_c + (row * map_h + column * map_w)[None, :]
            value = tl.load(here, mask=mask & (inside & defined)[None, :], other=0.0)
            total += weight[None, :] * value
    total = tl.where(defined[None, :], total, float("nan"))
    tl.store(out + item * out_n + c * points + p[None, :], total, mask=mask)


@triton.jit
def scatter_kernel(
    xy, grad, out, points, blocks, channels, height, width, grad_n, grad_c, grad_p, out_n, out_c, out_h, out_w,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Adds the gradient of a block of points to out (N, C, H, W), zeros before."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    x, y, fx, fy, sx, sy, defined = place(xy, item, p, points, height, width, NEAREST, PADDING, ALIGN)
    mask = (c < channels) & ((p < points) & defined)[None, :]
    g = tl.load(grad + item * grad_n + c * grad_c + p[None, :] * grad_p, mask=mask, other=0.0)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            row, column, weight, inside = tap(x, y, fx, fy, i, j, height, width, NEAREST)
            here = out + item * out_n + c * out_c + (row * out_h + column * out_w)[None, :]
            tl.atomic_add(here, weight[None, :] * g, mask=mask & inside[None, :], sem="relaxed")


@triton.jit
def slope_kernel(
    xy, map, grad, out, points, blocks, channels, height, width, map_n, map_c, map_h, map_w, grad_n, grad_c, grad_p,
    PADDING: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Adds to out (N, P, 2) what the channels of one map contribute to the gradient of a block of points."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x, y, fx, fy, sx, sy, defined = place(xy, item, p, points, height, width, False, PADDING, ALIGN)
    along_x = tl.zeros_like(fx)
    along_y = tl.zeros_like(fx)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            row, column, _, inside = tap(x, y, fx, fy, i, j, height, width, False)
            total = tl.zeros_like(fx)
            for first in range(0, channels, CHANNELS):
                c = first + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
                mask = (c < channels) & ((p < points) & inside & defined)[None, :]
                g = tl.load(grad + item * grad_n + c * grad_c + p[None, :] * grad_p, mask=mask, other=0.0)
                here = map + item * map_n + c * map_c + (row * map_h + column * map_w)[None, :]
                total += tl.sum(g * tl.load(here, mask=mask, other=0.0), axis=0)
            along_x += (2 * j - 1) * (fy if i == 1 else 1 - fy) * total
            along_y += (2 * i - 1) * (fx if j == 1 else 1 - fx) * total
    out += (item * points + p) * 2
    mask = (p < points) & defined
    tl.store(out, tl.load(out, mask=mask) + sx * along_x, mask=mask)
    tl.store(out + 1, tl.load(out + 1, mask=mask) + sy * along_y, mask=mask)


@triton.jit
def taps_kernel(
    xy, keys, weights, points, blocks, height, width, cells,
    NEAREST: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """keys (N, P, 4), image * cells + cell or -1, and weights: the four taps of a block of points."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x, y, fx, fy, sx, sy, defined = place(xy, item, p, points, height, width, NEAREST, PADDING, ALIGN)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            row, column, weight, inside = tap(x, y, fx, fy, i, j, height, width, NEAREST)
            here = (item * points + p) * 4 + 2 * i + j
            key = item * cells + row * width + column
            tl.store(keys + here, tl.where(inside & defined, key, -1), mask=p < points)
            tl.store(weights + here, weight, mask=p < points)


@triton.jit
def run_kernel(
    keys, order, weights, grad, out, taps, points, channels, cells, width, grad_n, grad_c, grad_p,
    out_n, out_c, out_h, out_w, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums each run of equal sorted keys in order, from its first tap on, and writes the cell."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    key = tl.load(keys + i, mask=i < taps, other=-1)
    before = tl.load(keys + i - 1, mask=(i > 0) & (i < taps), other=-1)
    first = (key >= 0) & (key != before)
    total = tl.zeros([CHANNELS, BLOCK], out.dtype.element_ty)
    live = first
    at = i
    while tl.max(live.to(tl.int32), axis=0) > 0:
        tap = tl.load(order + at, mask=live, other=0)
        weight = tl.load(weights + tap, mask=live, other=0.0)
        point = tap // 4
        here = grad + (point // points) * grad_n + (point % points) * grad_p
        g = tl.load(here[None, :] + c * grad_c, mask=live[None, :] & (c < channels), other=0.0)
        total += weight[None, :] * g
        at += 1
        live = live & (tl.load(keys + at, mask=at < taps, other=-1) == key)
    cell = key % cells
    place = out + (key // cells) * out_n + (cell // width) * out_h + (cell % width) * out_w
    tl.store(place[None, :] + c * out_c, total, mask=first[None, :] & (c < channels))


def options(mode: str, padding_mode: str, align_corners: bool) -> dict[str, int]:
    return {"NEAREST": mode == "nearest", "PADDING": PADDINGS.index(padding_mode), "ALIGN": align_corners}


def point_sample(points: Tensor, inputs: list[Tensor], mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """points (N, P, 2) and maps (N, C, H, W) to (N, sum of C, P)."""
    points = points.contiguous()
    batch, count, _ = points.shape
    out = points.new_empty(batch, sum(x.shape[1] for x in inputs), count)
    blocks = cdiv(count, BLOCK)
    for x, part in zip(inputs, out.split([x.shape[1] for x in inputs], 1), strict=True):
        if part.numel():
            sample_kernel[batch * blocks, cdiv(x.shape[1], CHANNELS)](
                points, x, part, count, blocks, *x.shape[1:], *x.stride(), out.stride(0),
                **options(mode, padding_mode, align_corners), BLOCK=BLOCK, **SAMPLE,
            )  # fmt: skip
    return out


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
    points = points.contiguous()
    batch, channels, count = grad.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    out = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout).zero_()
    if not (out.numel() and count):
        return out
    choice = options(mode, padding_mode, align_corners)
    blocks, groups = cdiv(count, BLOCK), cdiv(channels, CHANNELS)
    if not torch.are_deterministic_algorithms_enabled():
        scatter_kernel[batch * blocks, groups](
            points, grad, out, count, blocks, channels, height, width, *grad.stride(), *out.stride(),
            **choice, BLOCK=BLOCK, CHANNELS=CHANNELS,
        )  # fmt: skip
        return out
    keys = points.new_empty((batch, count, 4), dtype=torch.int64)
    weights = points.new_empty(batch, count, 4)
    taps_kernel[(batch * blocks,)](
        points, keys, weights, count, blocks, height, width, height * width, **choice, BLOCK=BLOCK
    )
    keys, order = keys.flatten().sort(stable=True)
    run_kernel[cdiv(len(keys), BLOCK), groups](
        keys, order, weights, grad, out, len(keys), count, channels, height * width, width,
        *grad.stride(), *out.stride(), BLOCK=BLOCK, CHANNELS=CHANNELS,
    )  # fmt: skip
    return out


def point_sample_backward_points(
    grad: Tensor, points: Tensor, inputs: list[Tensor], mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """The gradient (N, P, 2) of the points; grad (N, sum of C, P)."""
    points = points.contiguous()
    out = torch.zeros_like(points)
    batch, count, _ = points.shape
    choice = options(mode, padding_mode, align_corners)
    if choice.pop("NEAREST") or not out.numel():
        return out
    blocks = cdiv(count, BLOCK)
    for x, g in zip(inputs, grad.split([x.shape[1] for x in inputs], 1), strict=True):
        slope_kernel[(batch * blocks,)](
            points, x, g, out, count, blocks, *x.shape[1:], *x.stride(), *g.stride(),
            **choice, BLOCK=BLOCK, CHANNELS=CHANNELS,
        )  # fmt: skip
    return out


_CHOICES = [{"PADDING": p, "ALIGN": a, "BLOCK": BLOCK} for p in range(3) for a in (False, True)]
_WIDE = [{**c, "CHANNELS": CHANNELS} for c in _CHOICES]
_T = {"xy": "*T", "map": "*T", "grad": "*T", "out": "*T", "weights": "*T", "keys": "*i64", "order": "*i64"}
AOT = [
    *(
        (kernel, _T, [{**c, "NEAREST": nearest} for nearest in (False, True) for c in choices])
        for kernel, choices in (
            (sample_kernel, [{**c, **SAMPLE} for c in _CHOICES]),
            (scatter_kernel, _WIDE),
            (taps_kernel, _CHOICES),
        )
    ),
    (slope_kernel, _T, _WIDE),
    (run_kernel, _T, [{"BLOCK": BLOCK, "CHANNELS": CHANNELS}]),
]
