"""The encoding layer on a GPU: residuals from codewords, never N x P x K x D in memory.

Idea. A program has a block of pixels. Squared distances from all codewords are summed over the channels in registers,
channel by channel (a few are loaded at a time), from explicit differences (no |x|^2 - 2 x c + |c|^2, which cancels),
and their softmax is written. It multiplies the pixels in `soft_assignment`; another kernel adds the few parts, and
takes the codewords off. Back, a program makes distances and assignments again, and the gradients of both; one more
kernel makes the gradient of x of them, and `soft_assignment` that of the codewords. No atomics, so that results repeat.

What is summed by products is first centred on the mean codeword: a residual does not change by that, and a common
offset of pixels and codewords can not drown it. From bfloat16 nothing is taken off: products of such numbers are exact
in float32.

Memory. x is read in whatever layout and dtype it has. The assignments take P K numbers, on the way back 2 P K, the
parts D K for every 512 pixels.

Precision. Sums are float32. float32 is split into three TF32 products, which keeps about 22 bits; float64 does without
tensor cores. bfloat16 is multiplied as it is; codewords, assignments and pulls are rounded to it, and are summed as
that, as on a CPU. float16 is widened in registers and multiplied as float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, tile_width
from segops.kernels.soft_assignment import POINTERS, kept, softmax, weighed
from segops.kernels.tile_product import product
from torch import Tensor

from segops.kernels import tuning


@triton.jit
def assign_kernel(
    x, codes, scale, assignment, pixels, blocks, channels, count, x_n, x_d, x_p,
    PIXELS: tl.constexpr, CODES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The assignments (N, P, K) of a block of pixels to codes (D, K)."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, CODES)
    squares = tl.zeros([PIXELS, CODES], codes.dtype.element_ty)
    x += item * x_n + p * x_p
    for _ in tl.range(0, channels, loop_unroll_factor=UNROLL):
        value = tl.load(x, mask=p < pixels, other=0.0).to(squares.dtype)
        residual = value[:, None] - tl.load(codes + k, mask=k < count, other=0.0)[None, :]
        squares += residual * residual
        x += x_d
        codes += count
    a = softmax(squares * tl.load(scale + k, mask=k < count, other=0.0)[None, :], p, k, pixels, count)
    assignment += (item * pixels + p[:, None]) * count + k[None, :]
    tl.store(assignment, a.to(assignment.dtype.element_ty), mask=(p < pixels)[:, None] & (k < count)[None, :])


@triton.jit
def residual_kernel(
    parts, sums, centred, out, slices, channels, count, CHANNELS: tl.constexpr, CODES: tl.constexpr
):  # fmt: skip
    """out (N, K, D): the parts of weighted pixels (N, slices, D, K) less the sums of weights times `centred` (D, K)."""
    item = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    k = tl.program_id(2) * CODES + tl.arange(0, CODES)
    mask, table = (d < channels) & (k < count)[None, :], channels * count
    total = tl.zeros([CHANNELS, CODES], centred.dtype.element_ty)
    weight = tl.zeros([CODES], centred.dtype.element_ty)
    for part in range(slices):
        total += tl.load(parts + (item * slices + part) * table + d * count + k[None, :], mask=mask, other=0.0)
        weight += tl.load(sums + (item * slices + part) * count + k, mask=k < count, other=0.0)
    total -= weight[None, :] * tl.load(centred + d * count + k[None, :], mask=mask, other=0.0)
    tl.store(out + item * table + k[None, :] * channels + d, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def differentiate_kernel(
    grad, x, codes, scale, both, scales, pixels, blocks, channels, count, x_n, x_d, x_p,
    PIXELS: tl.constexpr, CODES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Assignments and pulls (the gradients of squared distances, doubled) to `both` (N, P, 2 K), and a block's part of
    the gradient of the scale (N, blocks, K); grad (N, D, K), codes (D, K)."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, CODES)
    grad += item * channels * count
    squares = tl.zeros([PIXELS, CODES], codes.dtype.element_ty)
    slope = tl.zeros([PIXELS, CODES], codes.dtype.element_ty)
    x += item * x_n + p * x_p
    for _ in tl.range(0, channels, loop_unroll_factor=UNROLL):
        value = tl.load(x, mask=p < pixels, other=0.0).to(squares.dtype)
        residual = value[:, None] - tl.load(codes + k, mask=k < count, other=0.0)[None, :]
        squares += residual * residual
        slope += residual * tl.load(grad + k, mask=k < count, other=0.0)[None, :]
        x += x_d
        codes += count
        grad += count
    s = tl.load(scale + k, mask=k < count, other=0.0)[None, :]
    a = softmax(squares * s, p, k, pixels, count)
    slope = a * (slope - tl.sum(a * slope, axis=1)[:, None])
    tl.store(scales + block * count + k, tl.sum(slope * squares, axis=0), mask=k < count)
    both += (item * pixels + p[:, None]) * 2 * count + k[None, :]
    mask = (p < pixels)[:, None] & (k < count)[None, :]
    tl.store(both, a.to(both.dtype.element_ty), mask=mask)
    tl.store(both + count, (2 * s * slope).to(both.dtype.element_ty), mask=mask)


@triton.jit
def descend_kernel(
    grad, x, both, centred, mean, out, pixels, blocks, channels, count, x_n, x_d, x_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """The gradient of x, out (N, D, P): assignments times grad (N, D, K), and pulls times residuals, which are x - mean
    (D) less `centred` (D, K)."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = (block % blocks * PIXELS + tl.arange(0, PIXELS))[None, :]
    d = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64))[:, None]
    mask = (d < channels) & (p < pixels)
    value = tl.load(x + item * x_n + d * x_d + p * x_p, mask=mask, other=0.0).to(mean.dtype.element_ty)
    value -= tl.load(mean + d, mask=d < channels, other=0.0)
    total = tl.zeros([CHANNELS, PIXELS], mean.dtype.element_ty)
    pulled = tl.zeros([PIXELS], mean.dtype.element_ty)
    both += (item * pixels + p) * 2 * count
    for first in range(0, count, CODES):
        k = first + tl.arange(0, CODES)
        inside, code = (k < count)[:, None] & (p < pixels), (d < channels) & (k < count)[None, :]
        a = tl.load(both + k[:, None], mask=inside, other=0.0)
        pull = tl.load(both + count + k[:, None], mask=inside, other=0.0)
        g = tl.load(grad + (item * channels + d) * count + k[None, :], mask=code, other=0.0)
        c = tl.load(centred + d * count + k[None, :], mask=code, other=0.0)
        total += product(g.to(a.dtype), a)
        total -= product(c.to(a.dtype), pull)
        pulled += tl.sum(pull.to(pulled.dtype), axis=0)
    total += value * pulled[None, :]
    tl.store(out + (item * channels + d) * pixels + p, total.to(out.dtype.element_ty), mask=mask)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/
TABLE = {"CHANNELS": 64, "CODES": 8, "num_warps": 4}  # 8 numbers are what memory is read in


def tiles(count: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """Pixels of a program that has all codewords, and channels that it loads at a time, such that nothing spills."""
    columns = tile_width(count)
    codes = {"CODES": columns, "UNROLL": 4 if columns <= 32 else 1}
    if dtype == torch.float64:
        return [{"PIXELS": 16 if columns <= 64 else 8, **codes, "num_warps": 8}]
    pixels = max(16, min(32, 2048 // columns))
    first = {"PIXELS": pixels, **codes, "num_warps": 4, "num_stages": 1}
    return tuning.variants(first, {"PIXELS": 2 * pixels, "num_warps": 8}, {"num_warps": 8}, {"UNROLL": 1})


def descent_tiles(dtype: torch.dtype) -> list[dict[str, int]]:
    """Tiles of the gradient of x, for which codewords come CODES at a time."""
    if dtype == torch.float64:
        return [{"PIXELS": 16, "CHANNELS": 8, "CODES": 16, "num_warps": 8}]
    channels = 64 if dtype == torch.bfloat16 else 32
    first = {"PIXELS": 64, "CHANNELS": channels, "CODES": 16, "num_warps": 8, "num_stages": 2}
    return tuning.variants(first, {"PIXELS": 32, "CHANNELS": 32, "num_warps": 4})


def prepared(x: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codewords (D, K) as they are and less their mean, and this mean (D); of bfloat16 rounded, and the mean 0."""
    columns = codewords.to(kept(x)).to(codewords.dtype).T.contiguous()
    mean = columns.mean(1) if x.dtype != torch.bfloat16 else columns.new_zeros(len(columns))
    return columns, columns - mean[:, None], mean


def encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """x (N, D, P), codewords (K, D), scale (K) to (N, K, D)."""
    (items, channels, pixels), count = x.shape, len(codewords)
    out = x.new_empty(items, count, channels)
    if items == 0:
        return out
    codes, centred, mean = prepared(x, codewords)
    scale, assignment = scale.contiguous(), x.new_empty(items, pixels, count, dtype=kept(x))

    def launch(constants: dict) -> None:
        blocks = cdiv(pixels, constants["PIXELS"])
        assign_kernel[(items * blocks,)](
            x, codes, scale, assignment, pixels, blocks, channels, count, *x.stride(), **constants
        )

    tuning.run("encoding.assign", launch, tiles(count, x.dtype), MACHINES, x, *x.shape, count)
    parts, sums = weighed(x, assignment, None if x.dtype == torch.bfloat16 else mean)
    residual_kernel[items, cdiv(channels, TABLE["CHANNELS"]), cdiv(count, TABLE["CODES"])](
        parts, sums, centred, out, parts.shape[1], channels, count, **TABLE
    )
    return out


def encoding_backward(grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, codewords and scale."""
    (items, channels, pixels), count = x.shape, len(codewords)
    out = x.new_empty(x.shape)
    if items == 0:
        return out, torch.zeros_like(codewords).contiguous(), torch.zeros_like(scale).contiguous()
    codes, centred, mean = prepared(x, codewords)
    grad, scale = grad.mT.to(codes.dtype).contiguous(), scale.contiguous()
    both = x.new_empty(items, pixels, 2 * count, dtype=kept(x))

    def differentiate(constants: dict) -> Tensor:
        blocks = cdiv(pixels, constants["PIXELS"])
        scales = codes.new_empty(items, blocks, count)
        differentiate_kernel[(items * blocks,)](
            grad, x, codes, scale, both, scales, pixels, blocks, channels, count, *x.stride(), **constants
        )
        return scales.sum((0, 1))

    def descend(constants: dict) -> None:
        blocks = cdiv(pixels, constants["PIXELS"])
        descend_kernel[items * blocks, cdiv(channels, constants["CHANNELS"])](
            grad, x, both, centred, mean, out, pixels, blocks, channels, count, *x.stride(), **constants
        )

    sizes, candidates = (*x.shape, count), tiles(count, x.dtype)
    grad_scale = tuning.run("encoding.differentiate", differentiate, candidates, MACHINES, x, *sizes)
    tuning.run("encoding.descend", descend, descent_tiles(x.dtype), MACHINES, x, *sizes)
    assignment, pull = both.split(count, 2)
    parts, sums = weighed(x, pull, None if x.dtype == torch.bfloat16 else mean)
    toward = parts.sum((0, 1)) - sums.sum((0, 1)) * centred
    assigned = (assignment.sum(1, keepdim=True, dtype=codes.dtype) * grad).sum(0)
    return out, -(assigned + toward).T.contiguous(), grad_scale


def _aot() -> Iterator[tuple]:
    for dtype, of_map, of_weights, of_sums in POINTERS:
        types = dict.fromkeys(("grad", "codes", "centred", "scale", "scales", "mean", "parts", "sums"), of_sums)
        types |= {"x": of_map, "out": of_map, "assignment": of_weights, "both": of_weights}
        of_counts = [tiles(count, dtype) for count in (32, 8, 64, 128, 256)]
        for kernel, candidates in (
            (assign_kernel, of_counts),
            (differentiate_kernel, of_counts),
            (descend_kernel, [descent_tiles(dtype)]),
            (residual_kernel, [TABLE]),
        ):
            yield kernel, {name: t for name, t in types.items() if name in kernel.arg_names}, candidates


AOT = list(_aot())
