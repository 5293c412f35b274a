"""Rows of non-local attention at the sizes of its heads, and the ways to write it in plain PyTorch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from bench_types import BFLOAT16, Inputs, Provider, Refused, Workload, doubled, tensors_once, with_gradients
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import segops


def maps(channels: int, size: int, dtype: torch.dtype = torch.float32, mode: str = "embedded_gaussian") -> Inputs:
    """A crop of 8 (size - 1) + 1 pixels at stride 8; 256 channels of queries and keys, small enough that the softmax
    does not become a maximum."""
    g = torch.Generator().manual_seed(0)
    shapes = {"query": 256, "key": 256, "value": channels, "grad": channels}
    tensors = {k: torch.randn(1, c, size, size, generator=g) for k, c in shapes.items()}
    tensors["query"] *= 0.25
    tensors["key"] *= 0.25
    leaves = {k: x.to(dtype).requires_grad_(k != "grad") for k, x in tensors.items()}
    return {**leaves, "mode": mode}


def provider(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        tensors = inputs["query"], inputs["key"], inputs["value"]
        return lambda: with_gradients(lambda *x: function(*x, inputs["mode"]), *tensors, grad=inputs["grad"])

    return prepare


def fast(query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    return segops.nonlocal_attention(query, key, value, mode=mode)


def published(query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    """All pairs in memory, as the published modules have it."""
    weights = torch.matmul(query.flatten(2).mT, key.flatten(2))
    weights = weights / weights.shape[2] if mode == "dot_product" else weights.softmax(2)
    return torch.matmul(weights, value.flatten(2).mT).mT.contiguous().view(*value.shape[:2], *query.shape[2:])


def einsums(query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    weights = torch.einsum("nci,ncj->nij", query.flatten(2), key.flatten(2))
    weights = weights / weights.shape[2] if mode == "dot_product" else weights.softmax(2)
    return torch.einsum("ncj,nij->nci", value.flatten(2), weights).view(value.shape)


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    """Of views, whose channels lie apart: torch takes its math backend, for the fused ones refuse such strides."""
    heads = [x.flatten(2).mT[:, None] for x in (query, key, value)]
    return F.scaled_dot_product_attention(*heads, scale=1.0)[:, 0].mT.reshape(value.shape)


def sdpa_by(backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    """Of copies whose channels lie side by side, as the fused backends want them. What torch chooses by itself is one
    of the backends, and no provider of its own."""
    heads = [x.flatten(2).mT[:, None].contiguous() for x in (query, key, value)]
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*heads, scale=1.0)[:, 0].mT.reshape(value.shape)


def corner(inputs: Inputs) -> Inputs:
    """Some positions, with all channels: enough to learn whether a backend takes the whole."""
    return {
        name: x.detach()[..., :4, :4].requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
        for name, x in inputs.items()
    }


def sdpa(backend: SDPBackend) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """torch's attention by one backend alone. Whether it takes the inputs depends on dtype, channels, GPU and cuDNN, so
    that it is tried; torch says in warnings why it does not."""
    prepared = provider(partial(sdpa_by, backend))

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                prepared(corner(inputs))()
            except RuntimeError as e:
                raise Refused(reason(e, [str(w.message) for w in said])) from e
        return prepared(inputs)

    return prepare


def reason(error: RuntimeError, said: list[str]) -> str:
    """What torch says of the backend that was asked for; of all others it says that they are disabled."""
    own = [text for text in said if "not used because" not in text and "disabled" not in text]
    return (own or [str(error)])[0].partition(" (Triggered")[0]


def associated(query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    """What one would write who notices that the products associate."""
    context = torch.matmul(value.flatten(2), key.flatten(2).mT) / key.shape[2:].numel()
    return torch.matmul(context, query.flatten(2)).view(value.shape)


def mmcv(query: Tensor, key: Tensor, value: Tensor, mode: str) -> Tensor:
    """Between the projections of its NonLocal2d."""
    pairwise = getattr(importlib.import_module("mmcv.cnn").NonLocal2d, mode)
    layer = SimpleNamespace(use_scale=False)
    weights = pairwise(layer, query.flatten(2).mT, key.flatten(2))
    return torch.matmul(weights, value.flatten(2).mT).mT.contiguous().view(*value.shape[:2], *query.shape[2:])


def oracle(inputs: Inputs) -> list[Tensor]:
    """All pairs of some queries at a time: all together take 700 MB for each matrix. Products alone associate."""
    exact = doubled(inputs)
    if inputs["mode"] == "dot_product":
        return provider(associated)(exact)()
    leaves = [exact[name].flatten(2) for name in ("query", "key", "value")]
    outs, grad_queries, sums = [], [], [torch.zeros_like(x) for x in leaves[1:]]
    for query, grad in zip(leaves[0].split(512, 2), exact["grad"].flatten(2).split(512, 2), strict=True):
        out, *gradients = with_gradients(lambda *x: published(*x, inputs["mode"]), query, *leaves[1:], grad=grad)
        outs.append(out)
        grad_queries.append(gradients[0])
        sums = [s + g for s, g in zip(sums, gradients[1:], strict=True)]
    results = torch.cat(outs, 2), torch.cat(grad_queries, 2), *sums
    return [x.unflatten(2, inputs["query"].shape[2:]) for x in results]


def operations(inputs: Inputs) -> float:
    """Both products of all pairs, or of channels where they associate; twice that backward."""
    channels, out, positions = inputs["query"].shape[1], inputs["value"].shape[1], inputs["query"][0, 0].numel()
    if inputs["mode"] == "dot_product":
        return 3 * 2 * 2 * positions * channels * out
    return 3 * 2 * positions**2 * (channels + out)


OP, DOT = "nonlocal_attention", "nonlocal_attention_dot_product"


def workload(op: str, name: str, make: Callable[[], Inputs], size: int | None = None, late: bool = False) -> Workload:
    return Workload(op, name, make, tensors_once, oracle, threads=(2,), operations=operations, size=size, late=late)


WORKLOADS = (
    workload(OP, "256_256x97x97_forward_backward", lambda: maps(256, 97), 97 * 97),
    workload(OP, "256_512x97x97_forward_backward", lambda: maps(512, 97), late=True),
    *[workload(OP, "256_256x97x97_bfloat16_forward_backward", lambda: maps(256, 97, torch.bfloat16))] * BFLOAT16,
    workload(DOT, "256_256x97x97_forward_backward", lambda: maps(256, 97, mode="dot_product"), 97 * 97),
)

SWEEPS = tuple(
    workload(op, f"256_256x{size}x{size}_forward_backward", partial(maps, 256, size, mode=mode), size * size)
    for op, mode in ((OP, "embedded_gaussian"), (DOT, "dot_product"))
    for size in (25, 49)
)

PROVIDERS = (
    Provider("segops", OP, provider(fast)),
    Provider("published", OP, provider(published)),
    Provider("einsums", OP, provider(einsums), slow_on=("97x97",)),  # the same as published
    Provider("compiled", OP, lambda inputs: provider(torch.compile(published))(inputs)),
    # The same as sdpa_math, which is no slower.
    Provider("scaled_dot_product", OP, provider(scaled_dot_product), slow_on=("97x97",)),
    Provider("sdpa_math", OP, sdpa(SDPBackend.MATH)),
    Provider("sdpa_flash", OP, sdpa(SDPBackend.FLASH_ATTENTION)),
    Provider("sdpa_efficient", OP, sdpa(SDPBackend.EFFICIENT_ATTENTION), gpu_only=True),
    Provider("sdpa_cudnn", OP, sdpa(SDPBackend.CUDNN_ATTENTION), gpu_only=True),
    Provider("mmcv", OP, provider(mmcv), needs="mmcv"),
    Provider("segops", DOT, provider(fast)),
    Provider("published", DOT, provider(published)),
    Provider("compiled", DOT, lambda inputs: provider(torch.compile(published))(inputs)),
    Provider("mmcv", DOT, provider(mmcv), needs="mmcv"),
    Provider("associated", DOT, provider(associated)),
)
