"""A convolutional CRF on a GPU: messages, the weights of windows made in registers, and what is between messages.

Messages. A program has a block of pixels and of channels. Place by place of the window it makes the weight from the
colours of both pixels, once for all its channels, and adds; what neighbouring windows share comes out of the cache. The
way back to the colours and to the tables takes the sums over channels first, place by place; each program writes its
part of the tables' gradients, which torch adds, without atomics, so that results repeat.

Updates. A program has a block of cells and all labels. Pixel by pixel of the cells it interpolates the message, takes
the softmax and adds; backward, it goes through all pixels that see the cells, to gather the gradient of the message:
each pixel is done four times, and nothing of the size of the map is kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
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
    wide = min(32, next_power_of_2(channels))
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
    blocks, channel_blocks = cdiv(height * width, sizes["BLOCK"]), cdiv(channels, sizes["CHANNELS"])
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
    blocks, depth = cdiv(height * width, sizes["BLOCK"]), colors.shape[1]
    grad_colors = torch.empty_like(colors, memory_format=torch.contiguous_format)
    parts = values.new_empty(items * blocks, 2, *bilateral.shape)
    if items:
        differentiate_kernel[(items * blocks,)](
            grad.contiguous(), values.contiguous(), colors.contiguous(), bilateral.contiguous(), grad_colors, parts,
            height, width, height * width, channels, blocks, *bilateral.shape, DEPTH=depth,
            DEPTHS=next_power_of_2(max(1, depth)), **sizes,
        )  # fmt: skip
    grad_spatial, grad_bilateral = parts.sum(0).unbind()
    return grad_colors, grad_spatial.clone(), grad_bilateral.clone()


@triton.jit
def beside(at, before, blur, cells, DTYPE: tl.constexpr):
    """The cells on both sides of a row or a column, and the second one's share of it."""
    whole = at + before + blur - blur // 2
    share = (2 * (whole % blur) + 1 - blur % 2).to(DTYPE) / (2 * blur)
    return tl.maximum(whole // blur - 1, 0), tl.minimum(whole // blur, cells - 1), share


@triton.jit
def pixels_in(cell, before, blur, length):
    """How many rows or columns of the map a cell has."""
    return tl.minimum((cell + 1) * blur - before, length) - tl.maximum(cell * blur - before, 0)


@triton.jit
def result(
    logits, message, weights, label, y, x, mask, labels, height, width, top, left, blur, rows, columns,
    SOFTMAX: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """A block of pixels of all labels: the softmax or its argument, and log_softmax of the logits.

    A softmax does not see what all labels have in common: with one weight, log_softmax takes but the maximum.
    """
    dtype: tl.constexpr = logits.dtype.element_ty
    real = (label < labels)[:, None]
    known = real & mask[None, :]
    unary = tl.load(logits + label[:, None] * height * width + (y * width + x)[None, :], mask=known, other=0.0)
    unary = tl.where(real, unary, float("-inf"))
    unary -= tl.max(unary, axis=0)[None, :]
    if not (SOFTMAX and SHARED):
        unary -= tl.log(tl.sum(tl.exp(unary), axis=0))[None, :]
    above, below, down = beside(y, top, blur, rows, dtype)
    first, second, right = beside(x, left, blur, columns, dtype)
    message += label[:, None] * rows * columns
    if blur > 1:
        a = (1 - right)[None, :] * tl.load(message + (above * columns + first)[None, :], mask=known, other=0.0)
        a += right[None, :] * tl.load(message + (above * columns + second)[None, :], mask=known, other=0.0)
        b = (1 - right)[None, :] * tl.load(message + (below * columns + first)[None, :], mask=known, other=0.0)
        b += right[None, :] * tl.load(message + (below * columns + second)[None, :], mask=known, other=0.0)
        seen = (1 - down)[None, :] * a + down[None, :] * b
    else:  # nothing of the next pixel, which may be NaN
        seen = tl.load(message + (y * columns + x)[None, :], mask=known, other=0.0)
    z = tl.where(real, weights[:, None] * unary + seen, float("-inf"))
    if SOFTMAX:
        z = tl.exp(z - tl.max(z, axis=0)[None, :])
        z = z / tl.sum(z, axis=0)[None, :]
    return z, tl.where(real, unary, 0.0)


@triton.jit
def update_kernel(
    logits, message, weight, out, labels, height, width, top, left, blur, rows, columns, blocks,
    SOFTMAX: tl.constexpr, MEANS: tl.constexpr, SHARED: tl.constexpr, LABELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of cells of one image: their means, or all their pixels."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    cell = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    label = tl.arange(0, LABELS).to(tl.int64)
    weights = tl.load(weight + (0 * label if SHARED else label), mask=label < labels, other=0.0)
    logits += item * labels * height * width
    message += item * labels * rows * columns
    out += item * labels * (rows * columns if MEANS else height * width)
    total = tl.zeros([LABELS, BLOCK], logits.dtype.element_ty)
    for i in range(blur * blur):
        y, x = cell // columns * blur + i // blur - top, cell % columns * blur + i % blur - left
        mask = (cell < rows * columns) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        value, _ = result(
            logits, message, weights, label, y, x, mask, labels, height, width, top, left, blur, rows, columns, SOFTMAX,
            SHARED,
        )  # fmt: skip
        known = (label < labels)[:, None] & mask[None, :]
        if MEANS:
            total += tl.where(known, value, 0.0)
        else:
            tl.store(out + label[:, None] * height * width + (y * width + x)[None, :], value, mask=known)
    if MEANS:
        count = pixels_in(cell // columns, top, blur, height) * pixels_in(cell % columns, left, blur, width)
        known = (label < labels)[:, None] & (cell < rows * columns)[None, :]
        mean = total / tl.maximum(count, 1).to(total.dtype)[None, :]
        tl.store(out + label[:, None] * rows * columns + cell[None, :], mean, mask=known)


@triton.jit
def update_backward_kernel(
    grad, logits, message, weight, grad_logits, grad_message, parts, labels, height, width, top, left, blur, rows,
    columns, blocks, SOFTMAX: tl.constexpr, MEANS: tl.constexpr, SHARED: tl.constexpr, LABELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of cells of one image: gradients of their message and logits, and a part (labels) of the weights'."""
    dtype: tl.constexpr = logits.dtype.element_ty
    item = (tl.program_id(0) // blocks).to(tl.int64)
    cell = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    row, column = cell // columns, cell % columns
    label = tl.arange(0, LABELS).to(tl.int64)
    weights = tl.load(weight + (0 * label if SHARED else label), mask=label < labels, other=0.0)
    logits += item * labels * height * width
    grad_logits += item * labels * height * width
    message += item * labels * rows * columns
    grad_message += item * labels * rows * columns
    grad += item * labels * (rows * columns if MEANS else height * width)
    total = tl.zeros([LABELS, BLOCK], dtype)
    part = tl.zeros([LABELS, BLOCK], dtype)
    reach = 2 * blur - blur % 2  # rows whose share of the cell is not 0
    for i in range(reach * reach):
        y = (row - 1) * blur + blur // 2 + blur % 2 + i // reach - top
        x = (column - 1) * blur + blur // 2 + blur % 2 + i % reach - left
        mask = (cell < rows * columns) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        known = (label < labels)[:, None] & mask[None, :]
        value, unary = result(
            logits, message, weights, label, y, x, mask, labels, height, width, top, left, blur, rows, columns, SOFTMAX,
            SHARED,
        )  # fmt: skip
        of_row, of_column = (y + top) // blur, (x + left) // blur
        if MEANS:
            count = pixels_in(of_row, top, blur, height) * pixels_in(of_column, left, blur, width)
            at = label[:, None] * rows * columns + (of_row * columns + of_column)[None, :]
            slope = tl.load(grad + at, mask=known, other=0.0) / tl.maximum(count, 1).to(dtype)[None, :]
        else:
            at = label[:, None] * height * width + (y * width + x)[None, :]
            slope = tl.load(grad + at, mask=known, other=0.0)
        if SOFTMAX:
            slope = value * (slope - tl.sum(slope * value, axis=0)[None, :])
        first, second, share = beside(y, top, blur, rows, dtype)
        seen = tl.where(first == row, 1 - share, 0.0) + tl.where(second == row, share, 0.0)
        first, second, share = beside(x, left, blur, columns, dtype)
        seen *= tl.where(first == column, 1 - share, 0.0) + tl.where(second == column, share, 0.0)
        total += tl.where(known, seen[None, :] * slope, 0.0)
        mine = known & (of_row == row)[None, :] & (of_column == column)[None, :]
        part += tl.where(mine, slope * unary, 0.0)
        slope *= weights[:, None]
        if not (SOFTMAX and SHARED):
            slope -= tl.exp(unary) * tl.sum(slope, axis=0)[None, :]
        tl.store(grad_logits + label[:, None] * height * width + (y * width + x)[None, :], slope, mask=mine)
    known = (label < labels)[:, None] & (cell < rows * columns)[None, :]
    tl.store(grad_message + label[:, None] * rows * columns + cell[None, :], total, mask=known)
    tl.store(parts + tl.program_id(0).to(tl.int64) * labels + label, tl.sum(part, axis=1), mask=label < labels)


def update_tile(labels: int) -> dict[str, int]:
    """All labels, and cells as many as registers hold of them."""
    wide = next_power_of_2(labels)
    return {"LABELS": wide, "BLOCK": max(1, min(128, 512 // wide)), "num_warps": 4}


def update_geometry(logits: Tensor, message: Tensor, blur: int, sizes: dict[str, int]) -> tuple[int, ...]:
    """The integers of both kernels."""
    labels, height, width = logits.shape[1:]
    rows, columns = message.shape[2:]
    top, left = (rows * blur - height + 1) // 2, (columns * blur - width + 1) // 2
    return labels, height, width, top, left, blur, rows, columns, cdiv(rows * columns, sizes["BLOCK"])


def conv_crf_update(logits: Tensor, message: Tensor, weight: Tensor, blur: int, softmax: bool, means: bool) -> Tensor:
    """logits (N, L, H, W), message (N, L, h, w), weight (1 or L,) to the shape of logits, or of message for means."""
    out = torch.empty_like(message if means else logits, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    sizes = update_tile(logits.shape[1])
    geometry = update_geometry(logits, message, blur, sizes)
    update_kernel[(logits.shape[0] * geometry[-1],)](
        logits.contiguous(), message.contiguous(), weight.contiguous(), out, *geometry, SOFTMAX=softmax, MEANS=means,
        SHARED=weight.shape[0] == 1, **sizes,
    )  # fmt: skip
    return out


def conv_crf_update_backward(
    grad: Tensor, logits: Tensor, message: Tensor, weight: Tensor, blur: int, softmax: bool, means: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of logits, message and weight."""
    sizes = update_tile(logits.shape[1])
    geometry = update_geometry(logits, message, blur, sizes)
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    grad_message = torch.empty_like(message, memory_format=torch.contiguous_format)
    programs = logits.shape[0] * geometry[-1]
    parts = logits.new_empty(programs, logits.shape[1])
    if programs:
        update_backward_kernel[(programs,)](
            grad.contiguous(), logits.contiguous(), message.contiguous(), weight.contiguous(), grad_logits,
            grad_message, parts, *geometry, SOFTMAX=softmax, MEANS=means, SHARED=weight.shape[0] == 1, **sizes,
        )  # fmt: skip
    grad_weight = parts.sum(0)
    return grad_logits, grad_message, grad_weight if weight.shape[0] > 1 else grad_weight.sum(0, keepdim=True)


AOT = []
for _dtype in (torch.float32, torch.float64):
    _pointers = ("values", "colors", "spatial", "bilateral", "out", "grad", "grad_colors", "parts")
    _types = dict.fromkeys(_pointers, f"*fp{8 * _dtype.itemsize}")
    for _labels in (21, 2):
        AOT += [
            (message_kernel, _types, [{"DEPTH": 3, **tile(_labels, _dtype)}]),
            (differentiate_kernel, _types, [{"DEPTH": 3, "DEPTHS": 4, **gradient_tile(_labels, _dtype)}]),
        ]

_pointers = ("logits", "message", "weight", "out", "grad", "grad_logits", "grad_message", "parts")
_types = dict.fromkeys(_pointers, "*T")
_tiles = [
    {"SOFTMAX": _flag, "MEANS": _flag, "SHARED": _flag, **update_tile(_labels)}
    for _labels in (21, 150)
    for _flag in (True, False)
]
AOT += [(update_kernel, _types, _tiles), (update_backward_kernel, _types, _tiles)]
