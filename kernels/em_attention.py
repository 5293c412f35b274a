"""Expectation-maximization attention on a GPU: each iteration is one pass over x.

Idea. A program has a block of pixels. It goes over the channels twice: the first time it multiplies x with the bases,
for the responsibilities of its pixels; the second time, out of the cache, it multiplies x with these, and writes its
part of the moments. The parts are summed by torch, without atomics, so that results repeat. Back through an iteration
a program makes the responsibilities of its pixels again, and their gradient. The products that make the output and the
gradients are torch's own.

Memory. x and the gradient are read in whatever layout they have. The parts of the moments take C K numbers for each
block of pixels, the last responsibilities P K for each image, an iteration on the way back 2 P K.

float32 is split into three TF32 products, which keeps about 22 bits; float64 does without tensor cores.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from segops.kernels.soft_assignment import softmax
from segops.kernels.tile_product import product
from torch import Tensor

from segops.kernels import tuning
from segops.reference.em_attention import divided, maximise_backward
from segops.reference.halves import wide


@triton.jit
def accumulate_kernel(
    x, mu, parts, sums, keep, pixels, blocks, channels, bases, mu_n, x_n, x_c, x_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BASES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """A block's part of x z^T (N, blocks, C, K) and of the sums of z (N, blocks, K); keep (N, P, K) receives z."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, BASES)
    here, basis = (p < pixels)[:, None], (k < bases)[None, :]
    x += item * x_n
    mu += item * mu_n + k[None, :]
    s = tl.zeros([PIXELS, BASES], x.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask = here & (c < channels)[None, :]
        a = tl.load(x + p[:, None] * x_p + c[None, :] * x_c, mask=mask, other=0.0)
        b = tl.load(mu + c[:, None] * bases, mask=(c < channels)[:, None] & basis, other=0.0)
        s += product(a, b)
    z = softmax(s, p, k, pixels, bases)
    tl.store(sums + block * bases + k, tl.sum(z, axis=0), mask=k < bases)
    if KEEP:
        tl.store(keep + (item * pixels + p[:, None]) * bases + k[None, :], z, mask=here & basis)
    parts += block * channels * bases + k[None, :]
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask = (c < channels)[:, None] & (p < pixels)[None, :]
        a = tl.load(x + c[:, None] * x_c + p[None, :] * x_p, mask=mask, other=0.0)
        tl.store(parts + c[:, None] * bases, product(a, z), mask=(c < channels)[:, None] & basis)


@triton.jit
def differentiate_kernel(
    x, grad, mu, last, moments, sums, both, pixels, blocks, channels, bases, mu_n, x_n, x_c, x_p, g_n, g_c, g_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BASES: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Back through an iteration: z and ds to `both` (N, P, 2 K).

    ds is the gradient of the softmax's argument, that of z being x^T moments + sums, and in the iteration that comes
    FIRST (the last of the forward pass) grad^T last besides.
    """
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, BASES)
    here, basis = (p < pixels)[:, None], (k < bases)[None, :]
    x += item * x_n
    grad += item * g_n + p[:, None] * g_p
    mu += item * mu_n + k[None, :]
    table = item * channels * bases + k[None, :]
    s = tl.zeros([PIXELS, BASES], x.dtype.element_ty)
    u = tl.zeros([PIXELS, BASES], x.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask, inside, place = here & (c < channels)[None, :], (c < channels)[:, None] & basis, c[:, None] * bases
        a = tl.load(x + p[:, None] * x_p + c[None, :] * x_c, mask=mask, other=0.0)
        s += product(a, tl.load(mu + place, mask=inside, other=0.0))
        u += product(a, tl.load(moments + table + place, mask=inside, other=0.0))
        if FIRST:
            a = tl.load(grad + c[None, :] * g_c, mask=mask, other=0.0)
            u += product(a, tl.load(last + table + place, mask=inside, other=0.0))
    z = softmax(s, p, k, pixels, bases)
    u += tl.load(sums + item * bases + k, mask=k < bases, other=0.0)[None, :]
    u = z * (u - tl.sum(z * u, axis=1)[:, None])
    both += (item * pixels + p[:, None]) * 2 * bases + k[None, :]
    tl.store(both, z, mask=here & basis)
    tl.store(both + bases, u, mask=here & basis)


# Where the first of `tiles` was measured: benchmarks/results/gpu-h200.json. That of the gradient's is younger.
MACHINES = ("NVIDIA H200",)
GRADIENT_MACHINES = ()


def tiles(bases: int, dtype: torch.dtype, gradient: bool = False) -> list[dict[str, int]]:
    """Tiles that do not spill; float64 holds a three-dimensional product in registers."""
    width = max(16, triton.next_power_of_2(bases))
    if dtype == torch.float64:
        pixels = 16 if width <= 64 else 8
        return [{"PIXELS": pixels, "CHANNELS": max(1, 2048 // (pixels * width)), "BASES": width, "num_warps": 8}]
    pixels = 16 if width > 128 else 32 if width > 64 or gradient else 64
    warps = 4 if width <= 32 or (width > 128 and not gradient) else 8
    first = {"PIXELS": pixels, "CHANNELS": 16, "BASES": width, "num_warps": warps, "num_stages": 1}
    if gradient and width == 64:
        first |= {"num_warps": 4, "num_stages": 3}
    return tuning.variants(first, {"PIXELS": max(16, pixels // 2)}, {"num_stages": 1})


def stride(table: Tensor) -> int:
    """From one image's bases to the next one's."""
    return 0 if table.shape[0] == 1 else table.stride(0)


def accumulate(x: Tensor, mu: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """x z^T (N, C, K) and the sums of z (N, 1, K); keep (N, P, K) receives z."""
    (items, channels, pixels), bases = x.shape, mu.shape[2]

    def launch(constants: dict) -> tuple[Tensor, Tensor]:
        blocks = triton.cdiv(pixels, constants["PIXELS"])
        parts, sums = x.new_empty(items, blocks, channels, bases), x.new_empty(items, blocks, bases)
        accumulate_kernel[(items * blocks,)](
            x, mu, parts, sums, sums if keep is None else keep, pixels, blocks, channels, bases, stride(mu),
            *x.stride(), KEEP=keep is not None, **constants,
        )  # fmt: skip
        return parts.sum(1), sums.sum(1, keepdim=True)

    return tuning.run("em_attention.accumulate", launch, tiles(bases, x.dtype), MACHINES, x, *x.shape, bases)


def differentiate(x: Tensor, grad: Tensor | None, mu: Tensor, last: Tensor, moments: Tensor, sums: Tensor) -> Tensor:
    """z and ds side by side, (N, P, 2 K)."""
    (items, channels, pixels), bases = x.shape, mu.shape[2]
    g, first, both = x if grad is None else grad, grad is not None, x.new_empty(items, pixels, 2 * bases)
    moments, sums = moments.contiguous(), sums.contiguous()

    def launch(constants: dict) -> None:
        blocks = triton.cdiv(pixels, constants["PIXELS"])
        differentiate_kernel[(items * blocks,)](
            x, g, mu, last, moments, sums, both, pixels, blocks, channels, bases, stride(mu), *x.stride(), *g.stride(),
            FIRST=first, **constants,
        )  # fmt: skip

    candidates = tiles(bases, x.dtype, gradient=True)
    tuning.run("em_attention.differentiate", launch, candidates, GRADIENT_MACHINES, x, *x.shape, bases, first)
    return both


def em_attention(x: Tensor, bases: Tensor, iterations: int, eps_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C, P), bases (N or 1, C, K) to (N, C, P), (T, N, C, K) and (T, N, 2, K)."""
    items, channels, pixels = x.shape
    dtype, x, count = x.dtype, wide(x), bases.shape[2]
    history, norms = x.new_empty(iterations, items, channels, count), x.new_empty(iterations, items, 2, count)
    if items == 0:
        return x.new_empty(x.shape, dtype=dtype), history, norms
    mu, z = bases.contiguous(), x.new_empty(items, pixels, count)
    for t in range(iterations):
        moments, total = accumulate(x, mu, z if t == iterations - 1 else None)
        mean = divided(moments, total, eps_mode)
        norm = torch.linalg.vector_norm(mean, dim=1, keepdim=True)
        mu = history[t].copy_(divided(mean, norm, eps_mode))
        torch.cat([total, norm], 1, out=norms[t])
    return torch.bmm(mu, z.mT).to(dtype), history, norms


def em_attention_backward(
    grad: Tensor, grad_history: Tensor, x: Tensor, bases: Tensor, history: Tensor, norms: Tensor, eps_mode: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x and bases."""
    if x.shape[0] == 0:
        return x.new_empty(x.shape), torch.zeros_like(bases, memory_format=torch.contiguous_format)
    dtype, x, grad = x.dtype, wide(x), wide(grad)
    before, count = [bases.contiguous(), *history.contiguous()], bases.shape[2]
    last, out = before[-1], x.new_empty(x.shape)
    grad_mu = torch.bmm(grad, torch.softmax(x.mT @ before[-2], 2))
    for t in reversed(range(len(history))):
        first = t == len(history) - 1
        moments, sums = maximise_backward(grad_mu + grad_history[t], before[t + 1], norms[t], eps_mode)
        both = differentiate(x, grad if first else None, before[t], last, moments, sums)
        coefficients = torch.cat([moments, before[t].expand_as(moments)], 2)
        torch.baddbmm(out, coefficients, both.mT, beta=0 if first else 1, out=out)
        grad_mu = torch.bmm(x, both[..., count:])
    return out.to(dtype), grad_mu.sum(0, keepdim=True) if bases.shape[0] == 1 else grad_mu


_POINTERS = ("x", "grad", "mu", "last", "moments", "sums", "both", "parts", "keep")


def _aot(kernel: Any, flag: str) -> list[tuple]:
    return [
        (
            kernel,
            {name: t if name in _POINTERS else "i32" for name in kernel.arg_names},
            [
                [{flag: on, **c} for c in tiles(bases, dtype, flag == "FIRST")]
                for bases in (64, 19, 128, 256)
                for on in (True, False)
            ],
        )
        for t, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64))
    ]


AOT = _aot(accumulate_kernel, "KEEP") + _aot(differentiate_kernel, "FIRST")
