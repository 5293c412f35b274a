"""Rows of interlaced attention at the sizes of the paper's head, and the ways to write it in plain PyTorch.

Maps are padded to whole blocks, as the head does before its projections: 97 x 97, a crop of 769 at stride 8, to 104.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from bench_types import BFLOAT16, Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import segops

BLOCK = 8


def maps(size: int, relation: str, gradients: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    """256 channels of queries and keys, 512 of values."""
    g = torch.Generator().manual_seed(0)
    shapes = {"query": (1, 256, size, size), "key": (1, 256, size, size), "value": (1, 512, size, size)}
    tensors = {k: torch.randn(s, generator=g).to(dtype).requires_grad_(gradients) for k, s in shapes.items()}
    rest = {"grad": torch.randn(shapes["value"], generator=g).to(dtype)} if gradients else {}
    return {**tensors, **rest, "relation": relation}


def provider(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """``function`` takes query, key, value and relation."""

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        x, one = (inputs["query"], inputs["key"], inputs["value"]), partial(function, relation=inputs["relation"])
        return lambda: with_gradients(one, *x, grad=inputs["grad"]) if "grad" in inputs else [one(*x)]

    return prepare


def blocks(x: Tensor, relation: str) -> Tensor:
    """(N, C, H, W) to (N, two dimensions of groups, C, two of members), a view."""
    x = x.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    return x.permute(0, 3, 5, 1, 2, 4) if relation == "global" else x.permute(0, 2, 4, 1, 3, 5)


def unblocked(x: Tensor, relation: str) -> Tensor:
    x = x.permute(0, 3, 4, 1, 5, 2) if relation == "global" else x.permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4).flatten(2, 3).contiguous()


def batched(query: Tensor, key: Tensor, value: Tensor, relation: str) -> Tensor:
    """Batched products of permuted copies, as in the published code."""
    shape = blocks(value, relation).shape
    query, key, value = (
        blocks(x, relation).reshape(-1, x.shape[1], *shape[4:]).flatten(2) for x in (query, key, value)
    )
    weights = torch.softmax(query.shape[1] ** -0.5 * torch.matmul(query.mT, key), -1)
    return unblocked(torch.matmul(weights, value.mT).mT.contiguous().view(shape), relation)


def fused(query: Tensor, key: Tensor, value: Tensor, relation: str) -> Tensor:
    """torch's own attention on the permuted groups."""
    shape = blocks(value, relation).shape
    out = scaled_dot_product_attention(*(blocks(x, relation).flatten(4).flatten(1, 2).mT for x in (query, key, value)))
    return unblocked(out.mT.reshape(shape), relation)


def operations(inputs: Inputs) -> float:
    """Two products of each pixel with the members of its group; twice that backward."""
    _, channels, height, width = inputs["query"].shape
    members = BLOCK * BLOCK if inputs["relation"] == "local" else height * width // BLOCK**2
    forward = 2 * height * width * members * (channels + inputs["value"].shape[1])
    return forward * (3 if "grad" in inputs else 1)


def oracle(inputs: Inputs) -> list[Tensor]:
    with segops.backend("reference"):
        return provider(partial(segops.interlaced_attention, down_factor=BLOCK))(doubled(inputs))()


def workload(size: int, relation: str, gradients: bool, dtype: torch.dtype = torch.float32) -> Workload:
    kind = f"{'_bfloat16' * (dtype == torch.bfloat16)}{'_forward_backward' * gradients}"
    name, make = f"{relation}_256_512x{size}x{size}{kind}", partial(maps, size, relation, gradients, dtype)
    late = size == 128 or dtype == torch.bfloat16
    return Workload(OP, name, make, tensors_once, oracle, operations=operations, late=late)


OP = "interlaced_attention"
RELATIONS = ("global", "local")
WORKLOADS = (
    *(workload(size, relation, g) for size in (104, 128) for relation in RELATIONS for g in (False, True)),
    *[workload(104, relation, True, torch.bfloat16) for relation in RELATIONS] * BFLOAT16,
)
PROVIDERS = (
    Provider("segops", OP, provider(partial(segops.interlaced_attention, down_factor=BLOCK))),
    Provider("compiled", OP, lambda inputs: provider(torch.compile(batched))(inputs)),
    Provider("batched", OP, provider(batched)),
    Provider("sdpa", OP, provider(fused)),
)
