"""Rows of EM attention and of the encoding layer, at the sizes of EMANet and EncNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_types import BFLOAT16, Inputs, Provider, Workload, doubled, tensors_once
from torch import Tensor

import segops


def with_gradient(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result of a function and the gradients of all its inputs, where half the sum of squares is the loss."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach())]


def em_inputs(gradient: bool, n: int = 8, dtype: torch.dtype = torch.float32) -> Inputs:
    """EMANet's: 512 channels, stride 8 of a crop of 513 pixels, 64 bases."""
    g = torch.Generator().manual_seed(0)
    bases = torch.nn.functional.normalize(torch.randn(1, 512, 64, generator=g), dim=1)
    x = torch.randn(n, 512, 65, 65, generator=g)
    return {"x": x.to(dtype), "bases": bases.to(dtype), "gradient": gradient}


def encoding_inputs(gradient: bool, n: int = 4, dtype: torch.dtype = torch.float32) -> Inputs:
    """EncNet's: 512 channels, stride 8 of a crop of 480 pixels, 32 codewords, initialised as published."""
    g = torch.Generator().manual_seed(0)
    codewords = (2 * torch.rand(32, 512, generator=g) - 1) / (32 * 512) ** 0.5
    tensors = {"x": torch.randn(n, 512, 60, 60, generator=g), "codewords": codewords}
    tensors["scale"] = -torch.rand(32, generator=g)
    return {**{name: t.to(dtype) for name, t in tensors.items()}, "gradient": gradient}


def em(function: Callable[..., Any]) -> Callable[[Inputs], Callable[[], Any]]:
    """The output of function(x, bases, unrolled), which gives the bases too; or the output and its gradients."""

    def prepare(inputs: Inputs) -> Callable[[], Any]:
        x, bases = inputs["x"], inputs["bases"]
        if inputs["gradient"]:
            return lambda: with_gradient(lambda x, bases: function(x, bases, True)[0], x, bases)
        return lambda: function(x, bases, False)[0]

    return prepare


def segops_em(x: Tensor, bases: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    return segops.em_attention(x, bases, unrolled=unrolled)


def eager_em(x: Tensor, bases: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    """EMANet's loop in plain torch."""
    with torch.set_grad_enabled(unrolled):
        n, c, h, w = x.shape
        flat, mu = x.view(n, c, h * w), bases.repeat(n, 1, 1)
        for _ in range(3):
            z = torch.softmax(torch.bmm(flat.mT, mu), 2)
            mu = torch.bmm(flat, z / (1e-6 + z.sum(1, keepdim=True)))
            mu = mu / (1e-6 + mu.norm(dim=1, keepdim=True))
        return torch.bmm(mu, z.mT).view(n, c, h, w), mu


def einsum_em(x: Tensor, bases: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    """mmsegmentation's loop in plain torch."""
    normalize = torch.nn.functional.normalize
    with torch.set_grad_enabled(unrolled):
        flat, mu = x.flatten(2), bases.expand(x.shape[0], -1, -1)
        for _ in range(3):
            z = torch.softmax(torch.einsum("bcn,bck->bnk", flat, mu), 2)
            mu = normalize(torch.einsum("bcn,bnk->bck", flat, normalize(z, dim=1, p=1)), dim=1)
        return torch.einsum("bck,bnk->bcn", mu, z).view(x.shape), mu


def encode(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        tensors = inputs["x"], inputs["codewords"], inputs["scale"]
        return lambda: with_gradient(function, *tensors) if inputs["gradient"] else function(*tensors)

    return prepare


def eager_encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """The published formula, with residuals N x P x K x D."""
    residuals = x.flatten(2).mT[:, :, None] - codewords
    assignment = torch.softmax(scale * residuals.square().sum(3), 2)
    return (assignment[..., None] * residuals).sum(1)


def expanded_encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """By matrix products, |x|^2 - 2 x c + |c|^2: what one would write who knows of the memory, and that bfloat16 would
    lose what tells codewords apart."""
    dtype, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, codewords, scale = (t.to(wide) for t in (x.flatten(2), codewords, scale))
    squares = x.square().sum(1)[..., None] - 2 * (x.mT @ codewords.T) + codewords.square().sum(1)
    assignment = torch.softmax(scale * squares, 2)
    return ((x @ assignment).mT - assignment.sum(1)[..., None] * codewords).to(dtype)


def em_operations(inputs: Inputs) -> float:
    """Two products in each of 3 iterations and one more; twice that backward."""
    n, channels, height, width = inputs["x"].shape
    forward = (4 * 3 + 2) * n * height * width * channels * inputs["bases"].shape[2]
    return forward * (3 if inputs["gradient"] else 1)


def encoding_operations(inputs: Inputs) -> float:
    """Pixels by codewords, assignments by pixels; twice that backward."""
    n, channels, height, width = inputs["x"].shape
    forward = 4 * n * height * width * channels * inputs["codewords"].shape[0]
    return forward * (3 if inputs["gradient"] else 1)


def exact_em(inputs: Inputs) -> Any:
    return em(eager_em)(doubled(inputs))()


def exact_encoding(inputs: Inputs) -> Any:
    return encode(expanded_encoding)(doubled(inputs))()


WORKLOADS = (
    *(
        Workload("em_attention", name, partial(em_inputs, gradient), tensors_once, exact_em, operations=em_operations)
        for name, gradient in (("8x512x65x65_64_bases", False), ("8x512x65x65_64_bases_unrolled", True))
    ),
    *(
        Workload(
            "encoding",
            f"4x512x60x60_32_codewords{suffix}",
            partial(encoding_inputs, gradient),
            tensors_once,
            exact_encoding,
            threads=(2,) if gradient else (1, 2),
            operations=encoding_operations,
        )
        for suffix, gradient in (("", False), ("_forward_backward", True))
    ),
    *[
        Workload(
            op,
            f"{name}_bfloat16",
            partial(make, True, dtype=torch.bfloat16),
            tensors_once,
            exact,
            threads=(2,),
            operations=operations,
            late=True,
        )
        for op, name, make, exact, operations in (
            ("em_attention", "8x512x65x65_64_bases_unrolled", em_inputs, exact_em, em_operations),
            (
                "encoding",
                "4x512x60x60_32_codewords_forward_backward",
                encoding_inputs,
                exact_encoding,
                encoding_operations,
            ),
        )
    ]
    * BFLOAT16,
)

SWEEPS = (
    Workload(
        "em_attention",
        "1x512x65x65_64_bases",
        partial(em_inputs, False, 1),
        tensors_once,
        exact_em,
        operations=em_operations,
        size=65 * 65,
    ),
    Workload(
        "encoding",
        "1x512x60x60_32_codewords",
        partial(encoding_inputs, False, 1),
        tensors_once,
        exact_encoding,
        operations=encoding_operations,
        size=60 * 60,
    ),
)

PROVIDERS = (
    Provider("segops", "em_attention", em(segops_em)),
    Provider("eager", "em_attention", em(eager_em)),
    Provider("einsum", "em_attention", em(einsum_em)),
    Provider("segops", "encoding", encode(segops.encoding)),
    Provider("eager", "encoding", encode(eager_encoding), slow_on=("4x512x60x60",)),
    Provider("expanded", "encoding", encode(expanded_encoding)),
)
