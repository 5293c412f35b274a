"""Depthwise atrous convolution with kernels of each image's own: Liu et al., 2020 (CaC-Net)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def taps(size: int, count: int, dilation: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: the taps that touch the map, where in the output, and what they read there of the input."""
    for i in range(count):
        shift = (i - count // 2) * dilation
        if abs(shift) < size:
            yield i, slice(max(0, -shift), min(size, size - shift)), slice(max(0, shift), min(size, size + shift))


def empty_like(x: Tensor) -> Tensor:
    """Fresh memory in the layout that results have: channels_last as x, or contiguous."""
    cells = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.channels_last if cells else torch.contiguous_format)


def dynamic_depthwise_conv2d(input: Tensor, kernels: Tensor, dilation_y: int, dilation_x: int) -> Tensor:
    """input (N, C, H, W), kernels (N or 1, C, kh, kw), odd, to (N, C, H, W)."""
    out = empty_like(input).zero_()
    for i, rows, rows_in in taps(input.shape[2], kernels.shape[2], dilation_y):
        for j, columns, columns_in in taps(input.shape[3], kernels.shape[3], dilation_x):
            out[..., rows, columns] += kernels[..., i, j, None, None] * input[..., rows_in, columns_in]
    return out


def dynamic_depthwise_conv2d_backward(
    grad: Tensor, input: Tensor, batch: int, height: int, width: int, dilation_y: int, dilation_x: int
) -> Tensor:
    """Gradient of the kernels (batch, C, height, width), where a batch of 1 is shared by all images."""
    out = input.new_zeros(batch, input.shape[1], height, width)
    for i, rows, rows_in in taps(input.shape[2], height, dilation_y):
        for j, columns, columns_in in taps(input.shape[3], width, dilation_x):
            sums = (grad[..., rows, columns] * input[..., rows_in, columns_in]).sum((2, 3))
            out[..., i, j] = sums.sum(0, keepdim=True) if batch == 1 else sums
    return out
