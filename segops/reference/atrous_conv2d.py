"""Convolution with holes: Chen et al., *DeepLab*, 2016, equation 1 in two dimensions, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def taps(kernel: Sequence[int], dilation: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Row and column of each tap in the kernel, and in the map."""
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield i, j, i * dilation[0], j * dilation[1]


def memory_format(x: Tensor) -> torch.memory_format:
    """Of results: channels_last if x is that and not contiguous too, as a map of one channel or pixel is."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str,
) -> Tensor:
    """y[i] = sum over taps k of x[i stride + k dilation - padding] w[k]; weight (K, C / groups, h, w)."""
    padded = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (
        (padded.shape[2 + a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
    )
    w = weight.unflatten(0, (groups, -1))
    out = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for i, j, down, right in taps(weight.shape[2:], dilation):
        seen = padded[:, :, down :: stride[0], right :: stride[1]][:, :, :height, :width].unflatten(1, (groups, -1))
        out = out + torch.einsum("gkc,ngchw->ngkhw", w[..., i, j], seen).flatten(1, 2)
    out = out if bias is None else out + bias[:, None, None]
    return out.contiguous(memory_format=memory_format(x))


def atrous_conv2d_backward_input(
    grad: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    method: str,
) -> Tensor:
    """The gradient of x (N, C, height, width): what each tap has read receives its weight times grad."""
    n, _, rows, columns = grad.shape
    w, g = weight.unflatten(0, (groups, -1)), grad.unflatten(1, (groups, -1))
    out = grad.new_zeros(n, weight.shape[1] * groups, height + 2 * padding[0], width + 2 * padding[1])
    for i, j, down, right in taps(weight.shape[2:], dilation):
        back = torch.einsum("gkc,ngkhw->ngchw", w[..., i, j], g).flatten(1, 2)
        out[:, :, down :: stride[0], right :: stride[1]][:, :, :rows, :columns].add_(back)
    out = out[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def atrous_conv2d_backward_weight(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    method: str,
) -> Tensor:
    """The gradient of the weight (K, C / groups, h, w): of each tap the products of grad and what it has read."""
    padded = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    g = grad.unflatten(1, (groups, -1))
    out = x.new_empty(grad.shape[1], x.shape[1] // groups, *kernel)
    for i, j, down, right in taps(kernel, dilation):
        seen = padded[:, :, down :: stride[0], right :: stride[1]][:, :, : grad.shape[2], : grad.shape[3]]
        out[:, :, i, j] = torch.einsum("ngkhw,ngchw->gkc", g, seen.unflatten(1, (groups, -1))).flatten(0, 1)
    return out
