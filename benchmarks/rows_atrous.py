"""Rows of convolutions with holes, at the sizes of DeepLab's heads and of dilated residual networks.

Peers are torch's convolution on planes and on channels_last (inputs and weights, as a model in that layout has them),
and torch.compile around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bench_types import Inputs, Provider, Workload, doubled, with_gradients
from torch import Tensor

import segops


def inputs(channels: int, results: int, size: int, rates: Sequence[int], backward: bool) -> Inputs:
    """One image, a 3 x 3 kernel for each rate."""
    g = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(results, channels, 3, 3, generator=g).div_(3 * channels**0.5).requires_grad_(backward)
        for _ in rates
    ]
    x = torch.randn(1, channels, size, size, generator=g).requires_grad_(backward)
    return {"x": x, **{f"weight{i}": w for i, w in enumerate(weights)}, "rates": list(rates)}


def weights_of(inputs: Inputs) -> list[Tensor]:
    return [inputs[f"weight{i}"] for i in range(len(inputs["rates"]))]


def bytes_moved(inputs: Inputs) -> int:
    """Input and result once, and their gradients where there are some."""
    x, weights = inputs["x"], weights_of(inputs)
    results = sum(w.shape[0] for w in weights) * x.shape[2] * x.shape[3]
    return (x.numel() + results + sum(w.numel() for w in weights)) * 4 * (3 if x.requires_grad else 1)


def valid(length: int, rate: int) -> int:
    """How often one of the three taps of a kernel meets a position of the map, over all of them."""
    return sum(max(length - abs(tap * rate), 0) for tap in (-1, 0, 1))


def operations(inputs: Inputs) -> float:
    """The products that are not with padding; twice that backward."""
    x, weights = inputs["x"], weights_of(inputs)
    pairs = zip(weights, inputs["rates"], strict=True)
    forward = sum(2 * w.shape[0] * w.shape[1] * valid(x.shape[2], r) * valid(x.shape[3], r) for w, r in pairs)
    return forward * (3 if x.requires_grad else 1)


def run(function: Callable[..., Tensor], layout: torch.memory_format, inputs: Inputs) -> Callable[[], Any]:
    """function(rates, x, *weights), and the gradients where they are wanted, in a memory layout."""
    tensors = [inputs["x"], *weights_of(inputs)]
    wanted = tensors[0].requires_grad
    tensors = [t.detach().to(memory_format=layout).requires_grad_(wanted) for t in tensors]
    call = partial(function, inputs["rates"])
    if not wanted:
        return lambda: call(*tensors)
    with torch.no_grad():
        grad = torch.ones_like(call(*tensors)).div_(64)
    return lambda: with_gradients(call, *tensors, grad=grad)


def plain(rates: Sequence[int], x: Tensor, *weights: Tensor) -> list[Tensor]:
    conv2d = torch.nn.functional.conv2d
    return [conv2d(x, w, dilation=r, padding=r) for w, r in zip(weights, rates, strict=True)]


def plain_concat(rates: Sequence[int], x: Tensor, *weights: Tensor) -> Tensor:
    return torch.cat(plain(rates, x, *weights), 1)


def plain_sum(rates: Sequence[int], x: Tensor, *weights: Tensor) -> Tensor:
    return sum(plain(rates, x, *weights))


def ours(combine: str, rates: Sequence[int], x: Tensor, *weights: Tensor) -> Tensor:
    return segops.aspp(x, weights, None, rates, combine=combine)


def our_convolution(rates: Sequence[int], x: Tensor, weight: Tensor) -> Tensor:
    return segops.atrous_conv2d(x, weight, dilation=rates[0])


def exact(function: Callable[..., Tensor], inputs: Inputs) -> Any:
    return run(function, torch.contiguous_format, doubled(inputs))()


def workloads(op: str, name: str, function: Callable[..., Tensor], *sizes: Any) -> tuple[Workload, ...]:
    """Forward, and with the gradients."""
    rest = {"threads": (2,), "operations": operations, "tf32": True}
    return tuple(
        Workload(op, name + suffix, partial(inputs, *sizes, backward), bytes_moved, partial(exact, function), **rest)
        for suffix, backward in (("_forward", False), ("_forward_backward", True))
    )


def providers(op: str, function: Callable[..., Tensor], peer: Callable[..., Tensor]) -> tuple[Provider, ...]:
    planes, last = torch.contiguous_format, torch.channels_last
    return (
        Provider("segops", op, partial(run, function, planes)),
        Provider("segops_channels_last", op, partial(run, function, last)),
        Provider("planes", op, partial(run, peer, planes)),
        Provider("channels_last", op, partial(run, peer, last)),
        Provider("compiled", op, partial(run, torch.compile(peer), last)),
    )


ESPNET = 12, 12, 128, [1, 2, 4, 8, 16]  # its narrowest pyramid, at a quarter of 512 pixels
WORKLOADS = (
    *workloads("atrous_conv2d", "2048_256_65x65_rate_36", plain_concat, 2048, 256, 65, [36]),
    *workloads("atrous_conv2d", "512_512_97x97_rate_4", plain_concat, 512, 512, 97, [4]),
    *workloads("atrous_conv2d", "256_256_97x97_rate_2", plain_concat, 256, 256, 97, [2]),
    *workloads("aspp", "deeplabv3_2048_256_65x65_rates_12_24_36", plain_concat, 2048, 256, 65, [12, 24, 36]),
    *(replace(w, late=True) for w in workloads("aspp", "espnet_12_12_128x128_rates_1_2_4_8_16", plain_concat, *ESPNET)),
    *workloads("aspp_sum", "deeplabv2_2048_21_65x65_rates_6_12_18_24", plain_sum, 2048, 21, 65, [6, 12, 18, 24]),
)
# Stride 16, where rates are half as large, of a small backbone.
SWEEPS = tuple(
    replace(workload, size=33 * 33)
    for workload in (
        workloads("atrous_conv2d", "512_256_33x33_rate_18", plain_concat, 512, 256, 33, [18])[1],
        workloads("aspp", "deeplabv3_512_256_33x33_rates_6_12_18", plain_concat, 512, 256, 33, [6, 12, 18])[1],
        workloads("aspp_sum", "deeplabv2_512_21_33x33_rates_3_6_9_12", plain_sum, 512, 21, 33, [3, 6, 9, 12])[1],
    )
)

PROVIDERS = (
    *providers("atrous_conv2d", our_convolution, plain_concat),
    *providers("aspp", partial(ours, "concat"), plain_concat),
    *providers("aspp_sum", partial(ours, "sum"), plain_sum),
)
