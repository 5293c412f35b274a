"""A convolutional CRF, Teichmann and Cipolla, 2018: messages of a Gaussian cut to a window, and what is between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .dynamic_depthwise_conv2d import taps
from .mean_field import softmax_backward


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


@dataclass(frozen=True)
class Cells:
    """Cells of blur x blur pixels over a map; a border that they do not divide cuts the first and the last ones."""

    blur: int
    height: int
    width: int

    def before(self) -> tuple[int, int]:
        """Rows and columns by which the first cells reach beyond the map."""
        return -(-(-self.height % self.blur) // 2), -(-(-self.width % self.blur) // 2)

    def means(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, h, w), the means of what is in the cells."""
        if self.blur == 1:
            return x
        return F.avg_pool2d(x, self.blur, padding=self.before(), count_include_pad=False)

    def means_backward(self, grad: Tensor) -> Tensor:
        if self.blur == 1:
            return grad
        x, size = grad.new_empty(*grad.shape[:2], self.height, self.width), [self.blur, self.blur]
        return torch.ops.aten.avg_pool2d_backward(grad, x, size, size, self.before(), False, False, None)

    def spread(self, x: Tensor) -> Tensor:
        """(N, C, h, w), in the middle of the cells, to (N, C, H, W), bilinear between them."""
        if self.blur == 1:
            return x
        top, left = self.before()
        wide = F.interpolate(x, scale_factor=self.blur, mode="bilinear", align_corners=False)
        return wide[:, :, top : top + self.height, left : left + self.width]

    def spread_backward(self, grad: Tensor) -> Tensor:
        if self.blur == 1:
            return grad
        top, left = self.before()
        bottom, right = -(self.height + top) % self.blur, -(self.width + left) % self.blur
        wide = F.pad(grad, (left, right, top, bottom))
        n, c, height, width = wide.shape
        size = [n, c, height // self.blur, width // self.blur]
        scale = float(self.blur)
        return torch.ops.aten.upsample_bilinear2d_backward(wide, [height, width], size, False, scale, scale)


def conv_crf_update(logits: Tensor, message: Tensor, weight: Tensor, blur: int, softmax: bool, means: bool) -> Tensor:
    """logits (N, L, H, W), message (N, L, h, w) of cells, weight (1 or L,); to the shape of logits, or of message.

    z = weight log_softmax(logits) + message, interpolated; softmax(z) or z; its means in the cells or all of it.
    """
    cells = Cells(blur, *logits.shape[2:])
    out = weight[:, None, None] * torch.log_softmax(logits, 1) + cells.spread(message)
    if softmax:
        out = torch.softmax(out, 1)
    return (cells.means(out) if means else out).contiguous()


def conv_crf_update_backward(
    grad: Tensor, logits: Tensor, message: Tensor, weight: Tensor, blur: int, softmax: bool, means: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of logits, message and weight."""
    cells = Cells(blur, *logits.shape[2:])
    unary, weights = torch.log_softmax(logits, 1), weight[:, None, None]
    if means:
        grad = cells.means_backward(grad)
    if softmax:
        grad = softmax_backward(grad, torch.softmax(weights * unary + cells.spread(message), 1))
    grad_unary = weights * grad
    grad_logits = grad_unary - unary.exp() * grad_unary.sum(1, keepdim=True)
    grad_weight = (grad * unary).sum((0, 2, 3))
    if weight.shape[0] == 1:
        grad_weight = grad_weight.sum(0, keepdim=True)
    return grad_logits.contiguous(), cells.spread_backward(grad).clone(), grad_weight
