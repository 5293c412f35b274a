"""Expectation-maximization attention on a GPU: in each iteration x is read once for each of the two steps.

Idea. For the E step a program has a block of pixels, multiplies it with the bases, and writes the responsibilities,
which are K numbers a pixel. The M step is the product of `soft_assignment`; a third kernel adds its few parts and makes
bases of them. Back through an iteration a program makes the responsibilities of its pixels again, and their gradient;
both are kept for all iterations, and one product of torch makes the gradient of x of them at the end: then it is
rounded once, and never read again to be added to. No atomics, so that results repeat.

Memory. x and the gradient are read in whatever layout and dtype they have. The responsibilities take P K numbers, the
parts of the moments C K for every 512 pixels; all iterations on the way back 2 T P K.

Precision. Sums, bases and moments are float32. float32 is split into three TF32 products, which keeps about 22 bits;
float64 does without tensor cores. bfloat16 is multiplied as it is, and bases, moments, responsibilities and their
gradients are rounded to it before they are multiplied, as on a CPU. float16 is widened in registers and multiplied as
float32: moments and small responsibilities exceed its range. Only in the output, whose factors are at most 1, both are
float16; the product that makes the gradient of x is float32, and rounded afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, tile_width
from segops.kernels.soft_assignment import POINTERS, kept, softmax, weighed
from segops.kernels.tile_product import mixed_product
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import sum_dtype


@triton.jit
def respond_kernel(
    x, mu, z, pixels, blocks, channels, bases, mu_n, x_n, x_c, x_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BASES: tl.constexpr,
):  # fmt: skip
    """The responsibilities (N, P, K) of a block of pixels for the bases mu (C, K)."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, BASES)
    here, basis = (p < pixels)[:, None], (k < bases)[None, :]
    x += item * x_n + p[:, None] * x_p
    mu += item * mu_n + k[None, :]
    s = tl.zeros([PIXELS, BASES], mu.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS).to(tl.int64)
        a = tl.load(x + c[None, :] * x_c, mask=here & (c < channels)[None, :], other=0.0)
        s += mixed_product(a, tl.load(mu + c[:, None] * bases, mask=(c < channels)[:, None] & basis, other=0.0))
    z += (item * pixels + p[:, None]) * bases + k[None, :]
    tl.store(z, softmax(s, p, k, pixels, bases).to(z.dtype.element_ty), mask=here & basis)


@triton.jit
def differentiate_kernel(
    x, grad, tables, last, sums, both, pixels, blocks, channels, bases, row, x_n, x_c, x_p, g_n, g_c, g_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, BASES: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Back through an iteration, of whose `tables` (N, C, row) the first 2 K columns are moments and mu: z and ds to
    the first 2 K of `both` (N, P, row).

    ds is the gradient of the softmax's argument, that of z being x^T moments + sums, and in the iteration that comes
    FIRST (the last of the forward pass) grad^T last besides.
    """
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, BASES)
    here, basis = (p < pixels)[:, None], (k < bases)[None, :]
    x += item * x_n + p[:, None] * x_p
    grad += item * g_n + p[:, None] * g_p
    tables += item * channels * row + k[None, :]
    last += item * channels * bases + k[None, :]
    s = tl.zeros([PIXELS, BASES], tables.dtype.element_ty)
    u = tl.zeros([PIXELS, BASES], tables.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask, inside = here & (c < channels)[None, :], (c < channels)[:, None] & basis
        a = tl.load(x + c[None, :] * x_c, mask=mask, other=0.0)
        s += mixed_product(a, tl.load(tables + c[:, None] * row + bases, mask=inside, other=0.0))
        u += mixed_product(a, tl.load(tables + c[:, None] * row, mask=inside, other=0.0))
        if FIRST:
            a = tl.load(grad + c[None, :] * g_c, mask=mask, other=0.0)
            u += mixed_product(a, tl.load(last + c[:, None] * bases, mask=inside, other=0.0))
    z = softmax(s, p, k, pixels, bases)
    u += tl.load(sums + item * bases + k, mask=k < bases, other=0.0)[None, :]
    u = z * (u - tl.sum(z * u, axis=1)[:, None])
    both += (item * pixels + p[:, None]) * row + k[None, :]
    tl.store(both, z.to(both.dtype.element_ty), mask=here & basis)
    tl.store(both + bases, u.to(both.dtype.element_ty), mask=here & basis)


@triton.jit
def divisor(amount, ADDED: tl.constexpr):
    """What a sum or a norm divides by, as `divided` of the reference has it."""
    return amount + 1e-6 if ADDED else tl.maximum(amount, 1e-12)


@triton.jit
def slope(amount, ADDED: tl.constexpr):
    """That of the divisor, 0 where it is cut off."""
    return tl.full(amount.shape, 1.0, amount.dtype) if ADDED else (amount >= 1e-12).to(amount.dtype)


@triton.jit
def add_parts(total, parts, mask, slices, stride):
    """total and what all slices have."""
    for _ in range(slices):
        total += tl.load(parts, mask=mask, other=0.0)
        parts += stride
    return total


@triton.jit
def maximise_kernel(
    parts, sums, mu, norms, slices, channels, bases,
    CHANNELS: tl.constexpr, BASES: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Some bases mu (N, C, K) of an image, of the parts of its moments, and what they were divided by (N, 2, K)."""
    item = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BASES + tl.arange(0, BASES)
    basis, table = k < bases, channels * bases
    parts += item * slices * table + k[None, :]
    mu += item * table + k[None, :]
    norms += item * 2 * bases + k
    square = tl.zeros([BASES], mu.dtype.element_ty)
    total = add_parts(tl.zeros([BASES], mu.dtype.element_ty), sums + item * slices * bases + k, basis, slices, bases)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)[:, None]
        mask = (c < channels) & basis[None, :]
        mean = add_parts(tl.zeros([CHANNELS, BASES], mu.dtype.element_ty), parts + c * bases, mask, slices, table)
        mean /= divisor(total, ADDED)[None, :]
        square += tl.sum(mean * mean, axis=0)
        tl.store(mu + c * bases, mean, mask=mask)
    norm = tl.sqrt(square)
    tl.store(norms, total, mask=basis)
    tl.store(norms + bases, norm, mask=basis)
    tl.debug_barrier()  # what is read now other threads may have written
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)[:, None]
        mask = (c < channels) & basis[None, :]
        mean = tl.load(mu + c * bases, mask=mask, other=0.0)
        tl.store(mu + c * bases, mean / divisor(norm, ADDED)[None, :], mask=mask)


@triton.jit
def maximise_backward_kernel(
    parts, grad, mu, norms, moments, sums, slices, channels, bases, row,
    CHANNELS: tl.constexpr, BASES: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """From the gradient of bases (N, C, K), which is grad and all parts, to that of the moments (N, C, row) and that of
    the sums of z (N, K): `maximise_backward` of the reference, whose sums over channels follow from two."""
    item = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BASES + tl.arange(0, BASES)
    basis, table = k < bases, channels * bases
    parts += item * slices * table + k[None, :]
    grad += item * table + k[None, :]
    mu += item * table + k[None, :]
    moments += item * channels * row + k[None, :]
    total = tl.load(norms + item * 2 * bases + k, mask=basis, other=1.0)
    norm = tl.load(norms + (item * 2 + 1) * bases + k, mask=basis, other=1.0)
    along = tl.zeros([BASES], mu.dtype.element_ty)
    square = tl.zeros([BASES], mu.dtype.element_ty)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)[:, None]
        mask = (c < channels) & basis[None, :]
        m = tl.load(mu + c * bases, mask=mask, other=0.0)
        g = add_parts(tl.load(grad + c * bases, mask=mask, other=0.0), parts + c * bases, mask, slices, table)
        along += tl.sum(g * m, axis=0)
        square += tl.sum(m * m, axis=0)
        tl.store(moments + c.to(tl.int64) * row, g, mask=mask)
    pull = tl.where(norm > 0, along * slope(norm, ADDED) / tl.where(norm > 0, norm, 1.0), 0.0)
    back = along - square * pull * divisor(norm, ADDED)
    tl.store(sums + item * bases + k, -back / divisor(total, ADDED) * slope(total, ADDED), mask=basis)
    tl.debug_barrier()  # as above
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)[:, None]
        mask = (c < channels) & basis[None, :]
        m = tl.load(mu + c * bases, mask=mask, other=0.0)
        g = tl.load(moments + c.to(tl.int64) * row, mask=mask, other=0.0)
        g = (g / divisor(norm, ADDED)[None, :] - m * pull[None, :]) / divisor(total, ADDED)[None, :]
        tl.store(moments + c.to(tl.int64) * row, g, mask=mask)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/
TABLE = {"CHANNELS": 256, "BASES": 8, "num_warps": 8}  # 8 numbers are what memory is read in


def tiles(bases: int, dtype: torch.dtype, gradient: bool = False) -> list[dict[str, int]]:
    """Tiles that do not spill; float64 holds a three-dimensional product in registers."""
    columns = tile_width(bases)
    if dtype == torch.float64:
        pixels = 16 if columns <= 64 else 8
        return [{"PIXELS": pixels, "CHANNELS": max(2, 2048 // (pixels * columns)), "BASES": columns, "num_warps": 8}]
    halves = dtype == torch.bfloat16
    if gradient:
        pixels = max(16, min(64, 8192 // columns) // (1 if halves else 2))
        first = {"PIXELS": pixels, "CHANNELS": 16, "BASES": columns, "num_warps": 8, "num_stages": 3 if halves else 2}
        return tuning.variants(first, {"num_stages": 1}, {"PIXELS": max(16, pixels // 2)} if halves else {})
    pixels, (channels, stages) = max(16, min(64, 4096 // columns)), (64, 2) if halves else (16, 3)
    first = {"PIXELS": pixels, "CHANNELS": channels, "BASES": columns, "num_warps": 8, "num_stages": stages}
    wide = {"CHANNELS": 32, "num_stages": 3} if halves else {"num_stages": 2}
    return tuning.variants(first, {"PIXELS": 2 * pixels, **wide})


def stride(table: Tensor) -> int:
    """From one image's bases to the next one's."""
    return 0 if table.shape[0] == 1 else table.stride(0)


def respond(x: Tensor, mu: Tensor) -> Tensor:
    """The responsibilities (N, P, K) of pixels (N, C, P) for bases (N or 1, C, K)."""
    (items, channels, pixels), bases = x.shape, mu.shape[2]
    z = x.new_empty(items, pixels, bases, dtype=kept(x))

    def launch(constants: dict) -> None:
        blocks = cdiv(pixels, constants["PIXELS"])
        respond_kernel[(items * blocks,)](
            x, mu, z, pixels, blocks, channels, bases, stride(mu), *x.stride(), **constants
        )

    tuning.run("em_attention.respond", launch, tiles(bases, x.dtype), MACHINES, x, *x.shape, bases)
    return z


def differentiate(x: Tensor, grad: Tensor | None, tables: Tensor, last: Tensor, sums: Tensor, both: Tensor) -> None:
    """z and ds to `both` (N, P, 2 K), which has the strides of `tables` (N, C, 2 K)."""
    (items, channels, pixels), bases = x.shape, last.shape[2]
    g, first = x if grad is None else grad, grad is not None

    def launch(constants: dict) -> None:
        blocks = cdiv(pixels, constants["PIXELS"])
        differentiate_kernel[(items * blocks,)](
            x, g, tables, last, sums, both, pixels, blocks, channels, bases, tables.stride(1), *x.stride(),
            *g.stride(), FIRST=first, **constants,
        )  # fmt: skip

    candidates = tiles(bases, x.dtype, gradient=True)
    tuning.run("em_attention.differentiate", launch, candidates, MACHINES, x, *x.shape, bases, first)


def em_attention(x: Tensor, bases: Tensor, iterations: int, eps_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C, P), bases (N or 1, C, K) to (N, C, P), (T, N, C, K) and (T, N, 2, K)."""
    (items, channels, _), count = x.shape, bases.shape[2]
    history = x.new_empty(iterations, items, channels, count, dtype=sum_dtype(x))
    norms = history.new_empty(iterations, items, 2, count)
    if items == 0:
        return x.new_empty(x.shape), history, norms
    mu, programs = bases.contiguous(), (items, cdiv(count, TABLE["BASES"]))
    for t in range(iterations):
        z = respond(x, mu)
        parts, sums = weighed(x, z)
        mu = history[t]
        maximise_kernel[programs](
            parts, sums, mu, norms[t], parts.shape[1], channels, count, ADDED=eps_mode == "add", **TABLE
        )
    return torch.bmm(mu.to(x.dtype), z.mT.to(x.dtype)), history, norms


def em_attention_backward(
    grad: Tensor, grad_history: Tensor, x: Tensor, bases: Tensor, history: Tensor, norms: Tensor, eps_mode: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x and bases."""
    (items, channels, pixels), count, iterations = x.shape, bases.shape[2], len(history)
    if items == 0:
        return x.new_empty(x.shape), torch.zeros_like(bases, memory_format=torch.contiguous_format)
    grad_history, norms = grad_history.contiguous(), norms.contiguous()
    before, programs = [bases.contiguous(), *history.contiguous()], (items, cdiv(count, TABLE["BASES"]))
    tables, sums = bases.new_empty(items, channels, iterations, 2, count), bases.new_empty(items, count)
    both = x.new_empty(items, pixels, iterations, 2, count, dtype=kept(x))
    parts, _ = weighed(grad, respond(x, before[-2]))
    for t in reversed(range(iterations)):
        first, moments = t == iterations - 1, tables[:, :, t, 0]
        tables[:, :, t, 1] = before[t]
        maximise_backward_kernel[programs](
            parts, grad_history[t], before[t + 1], norms[t], moments, sums, parts.shape[1], channels, count,
            tables.stride(1), ADDED=eps_mode == "add", **TABLE,
        )  # fmt: skip
        differentiate(x, grad if first else None, tables[:, :, t], before[-1], sums, both[:, :, t])
        parts, _ = weighed(x, both[:, :, t, 1])
    out = torch.bmm(tables.flatten(2).to(both.dtype), both.flatten(2).mT).to(x.dtype)
    return out, parts.sum((0, 1))[None] if bases.shape[0] == 1 else parts.sum(1)


def _aot() -> Iterator[tuple]:
    for dtype, of_map, of_weights, of_sums in POINTERS:
        for kernel, gradient in ((respond_kernel, False), (differentiate_kernel, True)):
            types = dict.fromkeys(("mu", "tables", "last", "sums"), of_sums)
            types |= {"x": of_map, "grad": of_map, "z": of_weights, "both": of_weights}
            yield (
                kernel,
                {name: t for name, t in types.items() if name in kernel.arg_names},
                [
                    [{**flag, **c} for c in tiles(bases, dtype, gradient)]
                    for bases in (64, 19, 128, 256)
                    for flag in ([{"FIRST": True}, {"FIRST": False}] if gradient else [{}])
                ],
            )
    for kernel in (maximise_kernel, maximise_backward_kernel):
        names = ("parts", "sums", "mu", "norms", "grad", "moments")
        types = {name: "*T" for name in names if name in kernel.arg_names}
        yield kernel, types, [{"ADDED": on, **TABLE} for on in (True, False)]


AOT = list(_aot())
