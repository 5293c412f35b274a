"""Rows of pyramid pooling, and of the attention to a pyramid, at the sizes of ANN's blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_types import Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor

import segops

SIZES = (1, 3, 6, 8)


def maps(gradients: bool, **channels: int) -> Inputs:
    """Stride 8 of a crop of 769 pixels, so many channels of each."""
    g = torch.Generator().manual_seed(0)
    inputs = {k: torch.randn(1, c, 97, 97, generator=g).requires_grad_(gradients) for k, c in channels.items()}
    return {**inputs, "gradients": gradients}


def provider(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """The result, and with gradients those of half its sum of squares."""

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        x = [t for t in inputs.values() if isinstance(t, Tensor)]
        if not inputs["gradients"]:
            return lambda: [function(*x)]
        with torch.no_grad():
            grad = function(*x)
        return lambda: with_gradients(function, *x, grad=grad)

    return prepare


def pools(x: Tensor) -> Tensor:
    """As published: a pooling of torch for each level."""
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, size).flatten(2) for size in SIZES], 2)


def published(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """ANN's block: two products and a softmax between."""
    weights = torch.softmax(query.flatten(2).mT @ pools(key) * query.shape[1] ** -0.5, 2)
    return (weights @ pools(value).mT).mT.contiguous().view(*value.shape[:2], *query.shape[2:])


def transposed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Products arranged so that no copy is needed: the softmax over the rows of (keys, queries)."""
    weights = torch.softmax(pools(key).mT @ query.flatten(2) * query.shape[1] ** -0.5, 1)
    return (pools(value) @ weights).view(*value.shape[:2], *query.shape[2:])


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's fused attention behind the same poolings."""
    q, k, v = (x.mT[:, None] for x in (query.flatten(2), pools(key), pools(value)))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
    return out.mT.contiguous().view(*value.shape[:2], *query.shape[2:])


def operations(inputs: Inputs) -> float:
    """Two products of the queries with the cells of the pyramid; twice that backward."""
    _, channels, height, width = inputs["query"].shape
    forward = 2 * height * width * sum(size * size for size in SIZES) * (channels + inputs["value"].shape[1])
    return forward * (3 if inputs["gradients"] else 1)


def exact(function: Callable[..., Tensor]) -> Callable[[Inputs], list[Tensor]]:
    return lambda inputs: provider(function)(doubled(inputs))()


WORKLOADS = tuple(
    workload
    for gradients, suffix in ((False, ""), (True, "_forward_backward"))
    for workload in (
        Workload(
            "pyramid_pool",
            f"512x97x97{suffix}",
            lambda gradients=gradients: maps(gradients, x=512),  # type: ignore[misc]
            tensors_once,
            exact(pools),
            late=True,
        ),
        Workload(
            "asymmetric_nonlocal",
            f"256_256x97x97{suffix}",
            lambda gradients=gradients: maps(gradients, query=256, key=256, value=256),  # type: ignore[misc]
            tensors_once,
            exact(published),
            operations=operations,
        ),
    )
)

PROVIDERS = (
    Provider("segops", "pyramid_pool", provider(segops.pyramid_pool)),
    Provider("eager", "pyramid_pool", provider(pools)),
    Provider("compiled", "pyramid_pool", lambda inputs: provider(torch.compile(pools))(inputs)),
    Provider("segops", "asymmetric_nonlocal", provider(segops.asymmetric_nonlocal)),
    Provider("published", "asymmetric_nonlocal", provider(published)),
    Provider("transposed", "asymmetric_nonlocal", provider(transposed)),
    Provider("compiled", "asymmetric_nonlocal", lambda inputs: provider(torch.compile(published))(inputs)),
    Provider("compiled_transposed", "asymmetric_nonlocal", lambda inputs: provider(torch.compile(transposed))(inputs)),
    Provider("fused", "asymmetric_nonlocal", provider(fused)),
)
