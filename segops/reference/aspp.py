"""Atrous spatial pyramid pooling: Chen et al., *DeepLab*, 2016, section 3.2: one input under several rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .atrous_conv2d import atrous_conv2d, atrous_conv2d_backward_input, atrous_conv2d_backward_weight, memory_format


def same(kernel: Sequence[int], rate: int) -> list[int]:
    """The padding that keeps the size, of an odd kernel."""
    return [rate * (k // 2) for k in kernel]


def geometry(kernel: Sequence[int], rate: int) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups."""
    return [1, 1], same(kernel, rate), [rate, rate], 1


def shares(grad: Tensor, counts: Sequence[int], sum: bool) -> Iterator[Tensor]:
    """The gradient of each branch."""
    yield from [grad] * len(counts) if sum else grad.split(list(counts), 1)


def aspp(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int], sum: bool, method: str
) -> Tensor:
    """x (N, C, H, W), weights (K_b, C, h, w) to (N, K_1 + ..., H, W), or with ``sum`` to the sum of the branches."""
    outs = [atrous_conv2d(x, w, None, *geometry(w.shape[2:], r), method) for w, r in zip(weights, rates, strict=True)]
    out = torch.stack(outs).sum(0) if sum else torch.cat(outs, 1)
    out = out if bias is None else out + bias[:, None, None]
    return out.contiguous(memory_format=memory_format(x))


def aspp_backward_input(
    grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int], sum: bool, channels_last: bool, method: str
) -> Tensor:
    """The gradient of x: the sum of those that the branches have."""
    gradients, (height, width) = [], grad.shape[2:]
    for g, w, r in zip(shares(grad, [w.shape[0] for w in weights], sum), weights, rates, strict=True):
        options = geometry(w.shape[2:], r)
        gradients.append(atrous_conv2d_backward_input(g, w, height, width, *options, channels_last, method))
    out = torch.stack(gradients).sum(0)
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def aspp_backward_weight(
    grad: Tensor, x: Tensor, counts: Sequence[int], kernels: Sequence[int], rates: Sequence[int], sum: bool, method: str
) -> Tensor:
    """The gradients of the weights behind each other; ``kernels`` holds height and width of each branch."""
    sizes = list(zip(kernels[::2], kernels[1::2], strict=True))
    return torch.cat(
        [
            atrous_conv2d_backward_weight(g, x, k, *geometry(k, r), method).flatten()
            for g, k, r in zip(shares(grad, counts, sum), sizes, rates, strict=True)
        ]
    )
