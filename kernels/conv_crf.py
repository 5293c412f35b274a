"""Messages of a convolutional CRF on a GPU, the weights of its windows made in registers.

Idea. A program has a block of pixels and of channels. Place by place of the window it makes the weight from the colours
of both pixels, once for all its channels, and adds; what neighbouring windows share comes out of the cache. The way
back to the colours and to the tables takes the sums over channels first, place by place; each program writes its part
of the tables' gradients, which torch adds, without atomics, so that results repeat.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def likeness(colors, p, there, inside, mask, pixels, DEPTH: tl.constexpr):
    """exp(-|c(p) - c(there)|^2 / 2) of pixels of one image."""
    squares = tl.zeros(p.shape, colors.dtype.element_ty)
    for _ in range(DEPTH):
        difference = tl.load(colors + p, mask=inside, other=0.0) - tl.load(colors + there, mask=mask, other=0.0)
        squares += difference * difference
        colors += pixels
    return tl.exp(-0.5 * squares)


@triton.jit
def message_kernel(
    values, colors, spatial, bilateral, out, height, width, pixels, channels, blocks, channel_blocks,
    window_height, window_width, DEPTH: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A block of the messages (N, C, P)."""
    block = tl.program_id(0) % blocks
    rest = tl.program_id(0) // blocks
    item = (rest // channel_blocks).to(tl.int64)
    c = rest % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    p = block * BLOCK + tl.arange(0, BLOCK)
    y, x, inside = p // width, p % width, p < pixels
    colors += item * DEPTH * pixels
    place = (item * channels + c[:, None].to(tl.int64)) * pixels
    total = tl.zeros([CHANNELS, BLOCK], values.dtype.element_ty)
    for i in range(window_height):
        down = i - window_height // 2
        row = inside & (y + down >= 0) & (y + down < height)
        for j in range(window_width):
            right = j - window_width // 2
            mask = row & (x + right >= 0) & (x + right < width)
            there = p + down * width + right
            like = likeness(colors, p, there, inside, mask, pixels, DEPTH)
            weight = tl.load(spatial + i * window_width + j) + tl.load(bilateral + i * window_width + j) * like
            seen = tl.load(values + place + there[None, :], mask=(c < channels)[:, None] & mask[None, :], other=0.0)
            total += weight[None, :] * seen
    tl.store(out + place + p[None, :], total, mask=(c < channels)[:, None] & inside[None, :])


@triton.jit
def differentiate_kernel(
    grad, values, colors, bilateral, grad_colors, parts, height, width, pixels, channels, blocks, window_height,
    window_width, DEPTH: tl.constexpr, DEPTHS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A block's gradient of the colours (N, D, P), and its part of those of both tables (programs, 2, window)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    y, x, inside = p // width, p % width, p < pixels
    size = window_height * window_width
    colors += item * DEPTH * pixels
    k = tl.arange(0, DEPTHS)
    depth = k[:, None].to(tl.int64) * pixels
    known = (k < DEPTH)[:, None] & inside[None, :]
    centre = tl.load(colors + depth + p[None, :], mask=known, other=0.0)
    slope = tl.zeros([DEPTHS, BLOCK], grad.dtype.element_ty)
    parts += tl.program_id(0).to(tl.int64) * 2 * size
    for t in range(size):
        down = t // window_width - window_height // 2
        right = t % window_width - window_width // 2
        mask = inside & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        there = p + down * width + right
        product = tl.zeros([BLOCK], grad.dtype.element_ty)
        back = tl.zeros([BLOCK], grad.dtype.element_ty)
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            both = (c < channels)[:, None] & mask[None, :]
            place = (item * channels + c[:, None].to(tl.int64)) * pixels
            here_at, there_at = place + p[None, :], place + there[None, :]
            g, v = tl.load(grad + here_at, mask=both, other=0.0), tl.load(values + there_at, mask=both, other=0.0)
            product += tl.sum(g * v, axis=0)
            g, v = tl.load(grad + there_at, mask=both, other=0.0), tl.load(values + here_at, mask=both, other=0.0)
            back += tl.sum(g * v, axis=0)
        difference = centre - tl.load(colors + depth + there[None, :], mask=known & mask[None, :], other=0.0)
        like = tl.exp(-0.5 * tl.sum(difference * difference, axis=0))
        pull = like * (product * tl.load(bilateral + t) + back * tl.load(bilateral + size - 1 - t))
        slope -= pull[None, :] * difference
        tl.store(parts + t, tl.sum(product, axis=0))
        tl.store(parts + size + t, tl.sum(product * like, axis=0))
    tl.store(grad_colors + item * DEPTH * pixels + depth + p[None, :], slope, mask=known)


def tile(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Pixels and channels of a program."""
    wide = min(32, triton.next_power_of_2(channels))
    return {"BLOCK": 128 if dtype == torch.float32 else 64, "CHANNELS": wide, "num_warps": 8 if wide == 32 else 4}


def gradient_tile(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """The same where four tiles are in registers."""
    return tile(min(4, channels), dtype)


def conv_crf_message(values: Tensor, colors: Tensor, spatial: Tensor, bilateral: Tensor) -> Tensor:
    """values (N, C, H, W), colors (N, D, H, W), the window's weights (kh, kw) to (N, C, H, W)."""
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    items, channels, height, width = values.shape
    sizes = tile(channels, values.dtype)
    blocks, channel_blocks = triton.cdiv(height * width, sizes["BLOCK"]), triton.cdiv(channels, sizes["CHANNELS"])
    message_kernel[(items * channel_blocks * blocks,)](
        values.contiguous(), colors.contiguous(), spatial.contiguous(), bilateral.contiguous(), out, height, width,
        height * width, channels, blocks, channel_blocks, *spatial.shape, DEPTH=colors.shape[1], **sizes,
    )  # fmt: skip
    return out


def conv_crf_message_backward(
    grad: Tensor, values: Tensor, colors: Tensor, bilateral: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of colors, spatial and bilateral."""
    items, channels, height, width = values.shape
    sizes = gradient_tile(channels, values.dtype)
    blocks, depth = triton.cdiv(height * width, sizes["BLOCK"]), colors.shape[1]
    grad_colors = torch.empty_like(colors, memory_format=torch.contiguous_format)
    parts = values.new_empty(items * blocks, 2, *bilateral.shape)
    if items:
        differentiate_kernel[(items * blocks,)](
            grad.contiguous(), values.contiguous(), colors.contiguous(), bilateral.contiguous(), grad_colors, parts,
            height, width, height * width, channels, blocks, *bilateral.shape, DEPTH=depth,
            DEPTHS=triton.next_power_of_2(max(1, depth)), **sizes,
        )  # fmt: skip
    grad_spatial, grad_bilateral = parts.sum(0).unbind()
    return grad_colors, grad_spatial.clone(), grad_bilateral.clone()


AOT = []
for _dtype in (torch.float32, torch.float64):
    _pointers = ("values", "colors", "spatial", "bilateral", "out", "grad", "grad_colors", "parts")
    _types = dict.fromkeys(_pointers, f"*fp{8 * _dtype.itemsize}")
    for _labels in (21, 2):
        AOT += [
            (message_kernel, _types, [{"DEPTH": 3, **tile(_labels, _dtype)}]),
            (differentiate_kernel, _types, [{"DEPTH": 3, "DEPTHS": 4, **gradient_tile(_labels, _dtype)}]),
        ]
