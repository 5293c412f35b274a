"""Atrous spatial pyramid pooling on a GPU: the kernels of atrous_conv2d, branch by branch.

Each branch writes its channels of the one result; sums, of branches or of their gradients, are added to what the
branches before have written, in float32. The input is small enough for the second-level cache of a large GPU, so that
it comes from memory about once. A branch that cuDNN is faster for goes there.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence

import torch
from torch import Tensor

from segops.kernels import atrous_conv2d as one
from segops.reference.aspp import geometry, same, shares
from segops.reference.atrous_conv2d import memory_format


def summed_in(dtype: torch.dtype, branches: int) -> torch.dtype:
    """Of a sum that is written more than once."""
    return dtype if branches == 1 or dtype == torch.float64 else torch.float32


def put(place: Tensor, result: Tensor, add: bool) -> None:
    """Write a branch of torch's, or add it to those before."""
    place.add_(result) if add else place.copy_(result)


def is_dense(method: str, product: str, x: Tensor, weight: Tensor, rate: int) -> bool:
    return one.is_dense(method, product, x.dtype, x.shape[2:], weight.shape[2:], *geometry(weight.shape[2:], rate))


def aspp(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, rates: Sequence[int], sum: bool, method: str
) -> Tensor:
    """x (N, C, H, W), weights (K_b, C, h, w) to (N, K_1 + ..., H, W), or the sum of the branches."""
    counts = [w.shape[0] for w in weights]
    out = torch.empty(
        (x.shape[0], counts[0] if sum else builtins.sum(counts), *x.shape[2:]),
        device=x.device,
        dtype=summed_in(x.dtype, len(weights)) if sum else x.dtype,
        memory_format=memory_format(x),
    )
    source, places = one.by_pixel(x), shares(out, counts, sum)
    biases = [bias] + [None] * (len(counts) - 1) if sum or bias is None else bias.split(counts)
    for i, (w, b, rate, place) in enumerate(zip(weights, biases, rates, places, strict=True)):
        first, add = [-p for p in same(w.shape[2:], rate)], sum and i > 0
        if is_dense(method, "forward", x, w, rate):
            put(place, one.atrous_conv2d(source, w, b, *geometry(w.shape[2:], rate), "dense"), add)
        else:
            one.convolve(source, one.by_result(w, 1), b, place, w.shape[2:], first, (rate, rate), add=add)
    return out.to(x.dtype)


def aspp_backward_input(
    grad: Tensor, weights: Sequence[Tensor], rates: Sequence[int], sum: bool, channels_last: bool, method: str
) -> Tensor:
    """The gradient of x, the sum of those that the branches have."""
    out = torch.empty(
        (grad.shape[0], weights[0].shape[1], *grad.shape[2:]),
        device=grad.device,
        dtype=summed_in(grad.dtype, len(weights)),
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    gradients = shares(one.by_pixel(grad), [w.shape[0] for w in weights], sum)
    for i, (g, w, rate) in enumerate(zip(gradients, weights, rates, strict=True)):
        first, options = same(w.shape[2:], rate), geometry(w.shape[2:], rate)
        if is_dense(method, "input", grad, w, rate):
            part = one.atrous_conv2d_backward_input(g, w, *grad.shape[2:], *options, channels_last, "dense")
            put(out, part, i > 0)
        else:
            one.convolve(g, one.by_source(w, 1), None, out, w.shape[2:], first, (-rate, -rate), add=i > 0)
    return out.to(grad.dtype)


def aspp_backward_weight(
    grad: Tensor,
    x: Tensor,
    counts: Sequence[int],
    kernels: Sequence[int],
    rates: Sequence[int],
    sum: bool,
    method: str,
) -> Tensor:
    """The gradients of the weights behind each other."""
    sizes = list(zip(kernels[::2], kernels[1::2], strict=True))
    grad, x = one.by_pixel(grad), one.by_pixel(x)
    return torch.cat(
        [
            one.atrous_conv2d_backward_weight(g, x, k, *geometry(k, rate), method).flatten()
            for g, k, rate in zip(shares(grad, counts, sum), sizes, rates, strict=True)
        ]
    )
