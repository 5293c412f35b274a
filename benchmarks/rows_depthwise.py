"""Rows of depthwise atrous convolution: the depthwise ASPP of DeepLabv3+, strides 8 and 16 of a crop of 513 pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_types import Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor

import segops

CHANNELS = 2048


def maps(size: int, rate: int, gradients: bool) -> Inputs:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHANNELS, size, size, generator=g)
    kernels = torch.randn(1, CHANNELS, 3, 3, generator=g).requires_grad_(gradients)
    inputs = {"x": x.requires_grad_(gradients), "kernels": kernels, "rate": rate}
    return {**inputs, "grad": torch.randn(x.shape, generator=g)} if gradients else inputs


def conv2d(x: Tensor, kernels: Tensor, rate: int) -> Tensor:
    return torch.nn.functional.conv2d(x, kernels.transpose(0, 1), padding=rate, dilation=rate, groups=CHANNELS)


def depthwise(x: Tensor, kernels: Tensor, rate: int) -> Tensor:
    return segops.dynamic_depthwise_conv2d(x, kernels, dilation=rate)


def provider(
    function: Callable[..., Tensor], layout: torch.memory_format = torch.contiguous_format
) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """Maps come in the layout that the provider likes, as they would from the layer before."""

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        kernels, rate = inputs["kernels"], inputs["rate"]
        x = inputs["x"].detach().to(memory_format=layout).requires_grad_(inputs["x"].requires_grad)
        if "grad" not in inputs:
            return lambda: [function(x, kernels, rate)]
        grad = inputs["grad"].to(memory_format=layout)
        return lambda: with_gradients(lambda x, kernels: function(x, kernels, rate), x, kernels, grad=grad)

    return prepare


def oracle(inputs: Inputs) -> list[Tensor]:
    with segops.backend("reference"):
        return provider(depthwise)(doubled(inputs))()


OP = "dynamic_depthwise_conv2d"
WORKLOADS = tuple(
    Workload(
        OP,
        f"{CHANNELS}x{size}x{size}_rate_{rate}{'_forward_backward' if gradients else ''}",
        lambda size=size, rate=rate, gradients=gradients: maps(size, rate, gradients),  # type: ignore[misc]
        tensors_once,
        oracle,
        threads=(2,),
    )
    for size, rates in ((65, (12, 24, 36)), (33, (6, 12, 18)))
    for rate in rates
    for gradients in (False, True)
)

PROVIDERS = (
    Provider("segops", OP, provider(depthwise)),
    Provider("segops_channels_last", OP, provider(depthwise, torch.channels_last)),
    Provider("conv2d", OP, provider(conv2d)),
    Provider("conv2d_channels_last", OP, provider(conv2d, torch.channels_last)),
    Provider(  # which calls the same convolution at any rate
        "compiled",
        OP,
        lambda inputs: provider(torch.compile(conv2d))(inputs),
        slow_on=("rate_18", "rate_24", "rate_36"),
    ),
)
