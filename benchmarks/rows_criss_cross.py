"""Rows of criss-cross attention at the sizes of CCNet's head, and the ways to write it in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from bench_types import BFLOAT16, Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor

import segops


def maps(n: int, size: int, gradients: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    """A crop of 8 (size - 1) + 1 pixels at stride 8; 64 channels of queries and keys, 512 of values."""
    g = torch.Generator().manual_seed(0)
    shapes = {"query": (n, 64, size, size), "key": (n, 64, size, size), "value": (n, 512, size, size)}
    tensors = {k: torch.randn(s, generator=g).to(dtype).requires_grad_(gradients) for k, s in shapes.items()}
    return {**tensors, "grad": torch.randn(shapes["value"], generator=g).to(dtype)} if gradients else tensors


def provider(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        x = [inputs["query"], inputs["key"], inputs["value"]]
        return lambda: with_gradients(function, *x, grad=inputs["grad"]) if "grad" in inputs else [function(*x)]

    return prepare


def joint(column: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (N, H, W, H) and (N, H, W, W) to the weights; a column leaves the pixel itself to the row."""
    height = column.shape[1]
    itself = torch.eye(height, dtype=torch.bool, device=column.device)[:, None, :]
    weights = torch.cat([column.masked_fill(itself, -torch.inf), row], -1).softmax(-1)
    return weights[..., :height], weights[..., height:]


def batched(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Batched products of permuted copies, as in the published code."""
    n, _, height, width = query.shape

    def columns(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).reshape(n * width, -1, height)

    def rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3).reshape(n * height, -1, width)

    column = (columns(query).mT @ columns(key)).view(n, width, height, height).transpose(1, 2)
    row = (rows(query).mT @ rows(key)).view(n, height, width, width)
    column, row = joint(column, row)
    by_column = columns(value) @ column.transpose(1, 2).reshape(n * width, height, height).mT
    by_row = rows(value) @ row.reshape(n * height, width, width).mT
    return by_column.view(n, width, -1, height).permute(0, 2, 3, 1) + by_row.view(n, height, -1, width).transpose(1, 2)


def einsums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As mmcv has it."""
    column = torch.einsum("nchw,nciw->nwhi", query, key).transpose(1, 2)
    column, row = joint(column, torch.einsum("nchw,nchj->nhwj", query, key))
    return torch.einsum("nciw,nhwi->nchw", value, column) + torch.einsum("nchj,nhwj->nchw", value, row)


def channels_last(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Einsums of copies whose channels lie side by side."""
    query, key, value = (x.permute(0, 2, 3, 1).contiguous() for x in (query, key, value))
    column = torch.einsum("nhwc,niwc->nhwi", query, key)
    column, row = joint(column, torch.einsum("nhwc,nhjc->nhwj", query, key))
    out = torch.einsum("nhwi,niwc->nhwc", column, value) + torch.einsum("nhwj,nhjc->nhwc", row, value)
    return out.permute(0, 3, 1, 2).contiguous()


def operations(inputs: Inputs) -> float:
    """Two products of each pixel with its row and column; twice that backward."""
    n, channels, height, width = inputs["query"].shape
    forward = 2 * n * height * width * (height + width) * (channels + inputs["value"].shape[1])
    return forward * (3 if "grad" in inputs else 1)


def oracle(inputs: Inputs) -> list[Tensor]:
    with segops.backend("reference"):
        return provider(segops.criss_cross_attention)(doubled(inputs))()


def workload(
    n: int, size: int, gradients: bool = True, dtype: torch.dtype = torch.float32, late: bool = False
) -> Workload:
    name = f"{n}x64_512x{size}x{size}{'_bfloat16' * (dtype == torch.bfloat16)}{'_forward_backward' * gradients}"
    grows = size * size if n == 1 and gradients and dtype == torch.float32 else None
    make = partial(maps, n, size, gradients, dtype)
    return Workload(OP, name, make, tensors_once, oracle, operations=operations, size=grows, late=late)


OP = "criss_cross_attention"
WORKLOADS = (
    *(workload(1, 97, gradients) for gradients in (False, True)),
    *[workload(1, 97, dtype=torch.bfloat16)] * BFLOAT16,
    *(workload(2, 65, gradients, late=True) for gradients in (False, True)),
)
SWEEPS = tuple(workload(1, size) for size in (33, 65, 129))
PROVIDERS = (
    Provider("segops", OP, provider(segops.criss_cross_attention)),
    Provider(
        "compiled_channels_last",
        OP,
        lambda inputs: provider(torch.compile(channels_last))(inputs),
    ),
    Provider("channels_last", OP, provider(channels_last)),
    Provider("batched", OP, provider(batched)),
    Provider("einsums", OP, provider(einsums)),
)
