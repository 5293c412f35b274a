"""The most uncertain of random points on a GPU: sampling and margins in one kernel, then a stable sort of the margins.

Idea. A program has a block of points: their four cells and weights are made once, then the channels pass, each a
bilinear sum, and the two largest sums stay in registers. Sampled logits are never written.

Memory. Four gathers for each point and channel, from logits in whatever layout they have; one margin for each point.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.topk_uncertain_grid import margin, most_uncertain, rank
from torch import Tensor


@triton.jit
def axis(position, size, stride):
    """Along one side: offsets of the two cells that a point lies between, their weights, and which are in bounds."""
    at = position * size - 0.5
    low = tl.floor(at)
    here, there = (low >= 0) & (low < size), (low >= -1) & (low < size - 1)
    cell = tl.where(here | there, low, 0.0).to(tl.int64)
    return cell * stride, (cell + 1) * stride, 1 - (at - low), at - low, here, there


@triton.jit
def point_margins_kernel(
    logits, points, out, count, height, width, blocks, channels, stride_n, stride_c, stride_h, stride_w,
    point_n, point_p, point_xy, BLOCK: tl.constexpr,
):  # fmt: skip
    """Margins of BLOCK points of points (N, M, 2) to out (N, M)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < count
    points += item * point_n + p * point_p
    x, y = tl.load(points, mask=inside, other=0.0), tl.load(points + point_xy, mask=inside, other=0.0)
    left, right, left_weight, right_weight, in_left, in_right = axis(x, width, stride_w)
    upper, lower, upper_weight, lower_weight, in_upper, in_lower = axis(y, height, stride_h)
    logits += item * stride_n
    first = tl.full([BLOCK], float("-inf"), logits.dtype.element_ty)
    second = first
    for _ in range(channels):
        above = tl.load(logits + upper + left, mask=inside & in_upper & in_left, other=0.0) * left_weight
        above += tl.load(logits + upper + right, mask=inside & in_upper & in_right, other=0.0) * right_weight
        below = tl.load(logits + lower + left, mask=inside & in_lower & in_left, other=0.0) * left_weight
        below += tl.load(logits + lower + right, mask=inside & in_lower & in_right, other=0.0) * right_weight
        first, second = rank(above * upper_weight + below * lower_weight, first, second)
        logits += stride_c
    tl.store(out + item * count + p, margin(first, second, channels), mask=inside)


def uncertain_points(logits: Tensor, candidates: Tensor, others: Tensor, important: int) -> Tensor:
    """logits (N, C, H, W), candidates (N, M, 2), others (N, R, 2) to (N, important + R, 2)."""
    n, channels, height, width = logits.shape
    count = candidates.shape[1]
    margins = candidates.new_empty((n, count))
    if margins.numel() > 0:
        blocks = cdiv(count, 128)
        point_margins_kernel[(n * blocks,)](
            logits, candidates, margins, count, height, width, blocks, channels, *logits.stride(),
            *candidates.stride(), BLOCK=128,
        )  # fmt: skip
    chosen = most_uncertain(margins, important)
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), others], 1)


AOT = [(point_margins_kernel, {"logits": "*T", "points": "*T", "out": "*T"}, [{"BLOCK": 128}])]
