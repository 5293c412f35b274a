"""Depthwise atrous convolution on a GPU, and the gradient of its kernels, at about the speed of memory.

Idea. A program has a tile of pixels and channels: many pixels of one channel where maps are in planes (NCHW), a few
pixels of many channels where they are in cells (channels_last). Either way neighbours in a warp read neighbours in
memory, and so does a tap, which is the same addresses a constant further on; where it leaves the map, it is masked.
Rows of taps that leave the map from everywhere in the tile are left out.

The gradient of a row of taps is a program's own sum over pixels and, where a kernel is shared, over images, in a fixed
order. Where there are too few of them to fill the device, each has a part of the pixels, and torch adds the parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
from torch import Tensor

PROGRAMS = 2048  # enough to keep a large device busy


@triton.jit
def convolve_kernel(
    input, kernels, out, height, width, channels, blocks, channel_blocks, kernel_step, pixel_step, channel_step,
    dilation_y, dilation_x, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of the output; kernels (N or 1, C, HEIGHT, WIDTH), those of images kernel_step apart."""
    block = tl.program_id(0) % blocks
    rest = tl.program_id(0) // blocks
    item = (rest // channel_blocks).to(tl.int64)
    c = rest % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    p = block * PIXELS + tl.arange(0, PIXELS)
    y, x = p // width, p % width
    inside = (p < height * width)[:, None] & (c < channels)[None, :]
    place = item * channels * height * width + c[None, :].to(tl.int64) * channel_step
    kernels += item * kernel_step + c.to(tl.int64) * HEIGHT * WIDTH
    first = tl.maximum(
        0, HEIGHT // 2 - tl.minimum(block * PIXELS + PIXELS - 1, height * width - 1) // width // dilation_y
    )
    last = tl.minimum(HEIGHT, HEIGHT // 2 + (height - 1 - block * PIXELS // width) // dilation_y + 1)
    total = tl.zeros([PIXELS, CHANNELS], input.dtype.element_ty)
    for i in range(first, last):
        up = (i - HEIGHT // 2) * dilation_y
        row = (y + up >= 0) & (y + up < height)
        for j in tl.static_range(WIDTH):
            right = (j - WIDTH // 2) * dilation_x
            mask = inside & (row & (x + right >= 0) & (x + right < width))[:, None]
            at = place + (p + up * width + right)[:, None].to(tl.int64) * pixel_step
            weight = tl.load(kernels + i * WIDTH + j, mask=c < channels, other=0.0)
            total += weight[None, :] * tl.load(input + at, mask=mask, other=0.0)
    tl.store(out + place + p[:, None].to(tl.int64) * pixel_step, total, mask=inside)


@triton.jit
def differentiate_kernel(
    grad, input, parts, images, height, width, channels, channel_blocks, items, part_pixels, image_step, pixel_step,
    channel_step, dilation_y, dilation_x, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A part of the gradient of a row of taps, in `parts` (parts, N or 1, C, HEIGHT, WIDTH), from `images` images."""
    i = tl.program_id(0) % HEIGHT
    rest = tl.program_id(0) // HEIGHT
    channel_block = rest % channel_blocks
    rest = (rest // channel_blocks).to(tl.int64)  # part * items + item
    c = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    up = (i - HEIGHT // 2) * dilation_y
    first = tl.maximum(0, -up) * width + (rest // items).to(tl.int32) * part_pixels
    last = tl.minimum(tl.minimum(height, height - up) * width, first + part_pixels)
    j = tl.arange(0, TAPS)
    right = (j - WIDTH // 2) * dilation_x
    place = rest % items * images * image_step + c.to(tl.int64) * channel_step
    total = tl.zeros([TAPS, PIXELS, CHANNELS], grad.dtype.element_ty)
    for _ in range(images):
        for begin in range(first, last, PIXELS):
            p = begin + tl.arange(0, PIXELS)
            inside = (p < last)[:, None] & (c < channels)[None, :]
            at = place[None, :] + p[:, None].to(tl.int64) * pixel_step
            slope = tl.load(grad + at, mask=inside, other=0.0)
            x = (p % width)[None, :] + right[:, None]
            mask = inside[None, :, :] & ((x >= 0) & (x < width) & (j < WIDTH)[:, None])[:, :, None]
            shift = (up * width + right).to(tl.int64) * pixel_step
            total += slope[None, :, :] * tl.load(input + at[None, :, :] + shift[:, None, None], mask=mask, other=0.0)
        place += image_step
    sums = tl.sum(total, axis=1)
    to = ((rest * channels + c[None, :]) * HEIGHT + i) * WIDTH + j[:, None]
    tl.store(parts + to, sums, mask=(j < WIDTH)[:, None] & (c < channels)[None, :])


def in_cells(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def tile(cells: bool, channels: int, dtype: torch.dtype, taps: int = 1) -> dict[str, int]:
    """Pixels and channels of a program that keeps so many sums for each of both."""
    size = max(32, (1024 if dtype == torch.float32 else 256) // taps)
    wide = min(64 if taps == 1 else 16, next_power_of_2(channels), size) if cells else 1
    return {"PIXELS": size // wide, "CHANNELS": wide, "num_warps": 4}


def steps(x: Tensor, cells: bool) -> tuple[int, int]:
    """From pixel to pixel, and from channel to channel."""
    return (x.shape[1], 1) if cells else (1, x.shape[2] * x.shape[3])


def dynamic_depthwise_conv2d(input: Tensor, kernels: Tensor, dilation_y: int, dilation_x: int) -> Tensor:
    """input (N, C, H, W), kernels (N or 1, C, kh, kw) to (N, C, H, W)."""
    cells = in_cells(input)
    out = torch.empty_like(input, memory_format=torch.channels_last if cells else torch.contiguous_format)
    if out.numel() == 0:
        return out
    input, kernels = input if cells else input.contiguous(), kernels.contiguous()
    items, channels, height, width = input.shape
    sizes = tile(cells, channels, input.dtype)
    blocks, channel_blocks = cdiv(height * width, sizes["PIXELS"]), cdiv(channels, sizes["CHANNELS"])
    convolve_kernel[(items * channel_blocks * blocks,)](
        input, kernels, out, height, width, channels, blocks, channel_blocks,
        kernels.stride(0) if len(kernels) > 1 else 0, *steps(input, cells), min(dilation_y, height),
        min(dilation_x, width), HEIGHT=kernels.shape[2], WIDTH=kernels.shape[3], **sizes,
    )  # fmt: skip
    return out


def dynamic_depthwise_conv2d_backward(
    grad: Tensor, input: Tensor, batch: int, height: int, width: int, dilation_y: int, dilation_x: int
) -> Tensor:
    """Gradient of the kernels (batch, C, height, width)."""
    images, channels, rows, columns = input.shape
    if images == 0:
        return input.new_zeros(batch, channels, height, width)
    cells = in_cells(input) and in_cells(grad)
    if not cells:
        input, grad = input.contiguous(), grad.contiguous()
    taps = next_power_of_2(width)
    sizes = tile(cells, channels, input.dtype, taps)
    channel_blocks = cdiv(channels, sizes["CHANNELS"])
    programs, most = batch * channel_blocks * height, cdiv(rows * columns, 4 * sizes["PIXELS"])
    count = min(most, cdiv(PROGRAMS, programs))
    parts = input.new_empty(count, batch, channels, height, width)
    differentiate_kernel[(count * programs,)](
        grad, input, parts, images // batch, rows, columns, channels, channel_blocks, batch,
        cdiv(rows * columns, count), channels * rows * columns, *steps(input, cells), min(dilation_y, rows),
        min(dilation_x, columns), HEIGHT=height, WIDTH=width, TAPS=taps, **sizes,
    )  # fmt: skip
    return parts[0] if count == 1 else parts.sum(0)


AOT = []
for _dtype in (torch.float32, torch.float64):
    _types = dict.fromkeys(("input", "kernels", "out", "grad", "parts"), f"*fp{8 * _dtype.itemsize}")
    _types |= {"kernel_step": "i64", "image_step": "i64"}
    for _size in (3, 7, 31):
        _taps = next_power_of_2(_size)
        _kernel = {"HEIGHT": _size, "WIDTH": _size}
        AOT += [(convolve_kernel, _types, [_kernel | tile(cells, 2048, _dtype) for cells in (False, True)])]
        _kernel |= {"TAPS": _taps}
        AOT += [(differentiate_kernel, _types, [_kernel | tile(cells, 2048, _dtype, _taps) for cells in (False, True)])]
