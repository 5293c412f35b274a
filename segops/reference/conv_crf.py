"""The messages of a convolutional CRF: Teichmann and Cipolla, 2018; a Gaussian cut to a window."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .dynamic_depthwise_conv2d import taps


def offsets(values: Tensor, table: Tensor) -> Iterator[tuple[int, int, tuple, tuple]]:
    """Each place (i, j) of the window, the pixels that have one there, and what stands there."""
    for i, rows, rows_there in taps(values.shape[2], table.shape[0], 1):
        for j, columns, columns_there in taps(values.shape[3], table.shape[1], 1):
            yield i, j, (..., rows, columns), (..., rows_there, columns_there)


def conv_crf_message(values: Tensor, colors: Tensor, spatial: Tensor, bilateral: Tensor) -> Tensor:
    """values (N, C, H, W), colors (N, D, H, W), the window's weights (kh, kw) to (N, C, H, W).

    out(p) = sum over d of (spatial(d) + bilateral(d) exp(-|c(p) - c(p + d)|^2 / 2)) v(p + d)
    """
    out = torch.zeros_like(values, memory_format=torch.contiguous_format)
    for i, j, here, there in offsets(values, spatial):
        likeness = torch.exp(-0.5 * (colors[here] - colors[there]).square().sum(1, keepdim=True))
        out[here] += (spatial[i, j] + bilateral[i, j] * likeness) * values[there]
    return out


def conv_crf_message_backward(
    grad: Tensor, values: Tensor, colors: Tensor, bilateral: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of colors, spatial and bilateral."""
    grad_colors = torch.zeros_like(colors, memory_format=torch.contiguous_format)
    grad_spatial, grad_bilateral = torch.zeros(2, *bilateral.shape, dtype=grad.dtype, device=grad.device).unbind()
    for i, j, here, there in offsets(values, bilateral):
        difference = colors[here] - colors[there]
        likeness = torch.exp(-0.5 * difference.square().sum(1, keepdim=True))
        product = (grad[here] * values[there]).sum(1, keepdim=True)
        grad_spatial[i, j] = product.sum()
        grad_bilateral[i, j] = (product * likeness).sum()
        pull = bilateral[i, j] * product * likeness * difference
        grad_colors[here] -= pull
        grad_colors[there] += pull
    return grad_colors, grad_spatial.clone(), grad_bilateral.clone()
