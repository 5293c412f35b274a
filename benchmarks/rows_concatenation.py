"""Rows of the concatenation form of non-local attention, from the scores on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from bench_types import Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor

import segops

OP = "nonlocal_concatenation"


def inputs(size: int, gradients: bool) -> Inputs:
    """256 channels; 97 is stride 8 of a crop of 769 pixels."""
    g = torch.Generator().manual_seed(0)
    positions = size * size
    shapes = {"query_score": (1, positions), "key_score": (1, positions), "value": (1, 256, positions)}
    tensors = {k: torch.randn(s, generator=g).requires_grad_(gradients) for k, s in shapes.items()}
    return {**tensors, "grad": torch.randn(shapes["value"], generator=g)} if gradients else tensors


def provider(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        x = [inputs["query_score"], inputs["key_score"], inputs["value"]]
        return lambda: with_gradients(function, *x, grad=inputs["grad"]) if "grad" in inputs else [function(*x)]

    return prepare


def eager(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    """The matrix of weights, and one product."""
    weights = torch.relu(query_score[:, :, None] + key_score[:, None, :]) / key_score.shape[1]
    return value @ weights.mT


def broadcasting(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    """As mmcv has it: all pairs concatenated, a 1x1 convolution, ReLU.

    Here on one channel each, where the published code has 128, which at this size are 90 GB; and not divided in place,
    which autograd refuses.
    """
    shape = query_score.shape[0], 1, query_score.shape[1], key_score.shape[1]
    pairs = torch.cat([query_score[:, None, :, None].expand(shape), key_score[:, None, None].expand(shape)], 1)
    weights = torch.relu(torch.nn.functional.conv2d(pairs, pairs.new_ones(1, 2, 1, 1)))[:, 0] / key_score.shape[1]
    return (weights @ value.mT).mT.contiguous()


def oracle(inputs: Inputs) -> list[Tensor]:
    """In float64, a few queries at a time: all weights are gigabytes."""
    x = doubled(inputs)
    pieces = []
    for i in range(0, x["query_score"].shape[1], 1024):
        piece = {**x, "query_score": x["query_score"][:, i : i + 1024].detach()}
        if "grad" in x:
            piece["query_score"].requires_grad_()
            piece["grad"] = x["grad"][..., i : i + 1024]
        pieces.append(provider(eager)(piece)())
    out = torch.cat([p[0] for p in pieces], 2)
    if "grad" not in x:
        return [out]
    grad_query = torch.cat([p[1] for p in pieces], 1)
    return [out, grad_query, sum(p[2] for p in pieces), sum(p[3] for p in pieces)]


def workload(size: int, gradients: bool) -> Workload:
    name = f"256x{size}x{size}{'_forward_backward' if gradients else ''}"
    place = size * size if gradients else None
    return Workload(OP, name, partial(inputs, size, gradients), tensors_once, oracle, threads=(2,), size=place)


WORKLOADS = (workload(97, False), workload(97, True))
SWEEPS = (workload(25, True), workload(49, True))

PROVIDERS = (
    Provider("segops", OP, provider(segops.nonlocal_concatenation)),
    Provider("compiled", OP, lambda inputs: provider(torch.compile(eager))(inputs)),
    Provider("eager", OP, provider(eager)),
    Provider("broadcasting", OP, provider(broadcasting), slow_on=("97x97",)),  # 16 and 31 seconds a call
)
