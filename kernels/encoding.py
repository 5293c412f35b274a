"""The encoding layer on a GPU: residuals from codewords, never N x P x K x D in memory.

Idea. A program has a block of pixels. Squared distances from all codewords are summed over the channels in registers,
one channel at a time, from explicit differences (no |x|^2 - 2 x c + |c|^2, which cancels). The softmax of these
multiplies the pixels, out of the cache, and the program writes its part of the sums, which torch adds, without atomics,
so that results repeat. Back, a program makes distances and assignments again, and the gradients of both; the products
that make the gradients of pixels and codewords are torch's own.

What is summed by products is first centred on the mean codeword: a residual does not change by that, and a common
offset of pixels and codewords can not drown it.

Memory. x is read in whatever layout it has. The parts take D K numbers for each block of pixels, the way back 2 P K and
a copy of x. float32 is split into three TF32 products, which keeps about 22 bits; float64 does without tensor cores.
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
from segops.reference.halves import wide


@triton.jit
def encode_kernel(
    x, codes, scale, mean, parts, sums, pixels, blocks, channels, count, x_n, x_d, x_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """A block's part of centred x times assignment (N, blocks, D, K) and of the sums of assignments; codes (D, K)."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, CODES)
    x += item * x_n
    squares = tl.zeros([PIXELS, CODES], x.dtype.element_ty)
    pixel = x + p * x_p
    for _ in range(channels):
        value = tl.load(pixel, mask=p < pixels, other=0.0)
        residual = value[:, None] - tl.load(codes + k, mask=k < count, other=0.0)[None, :]
        squares += residual * residual
        pixel += x_d
        codes += count
    a = softmax(squares * tl.load(scale + k, mask=k < count, other=0.0)[None, :], p, k, pixels, count)
    tl.store(sums + block * count + k, tl.sum(a, axis=0), mask=k < count)
    parts += block * channels * count + k[None, :]
    for first in range(0, channels, CHANNELS):
        d = first + tl.arange(0, CHANNELS).to(tl.int64)
        mask = (d < channels)[:, None] & (p < pixels)[None, :]
        value = tl.load(x + d[:, None] * x_d + p[None, :] * x_p, mask=mask, other=0.0)
        value -= tl.load(mean + d, mask=d < channels, other=0.0)[:, None]
        tl.store(parts + d[:, None] * count, product(value, a), mask=(d < channels)[:, None] & (k < count)[None, :])


@triton.jit
def differentiate_kernel(
    grad, x, codes, scale, both, scales, pixels, blocks, channels, count, x_n, x_d, x_p,
    PIXELS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Assignments and pulls (the gradients of squared distances, doubled) to `both` (N, P, 2 K), and a block's part of
    the gradient of the scale (N, blocks, K); grad (N, D, K), codes (D, K)."""
    block = tl.program_id(0).to(tl.int64)
    item = block // blocks
    p = block % blocks * PIXELS + tl.arange(0, PIXELS)
    k = tl.arange(0, CODES)
    x += item * x_n
    grad += item * channels * count
    squares = tl.zeros([PIXELS, CODES], x.dtype.element_ty)
    slope = tl.zeros([PIXELS, CODES], x.dtype.element_ty)
    x += p * x_p
    for _ in range(channels):
        value = tl.load(x, mask=p < pixels, other=0.0)
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
    tl.store(both, a, mask=mask)
    tl.store(both + count, 2 * s * slope, mask=mask)


# Where the first candidates were measured: nowhere, they are younger than benchmarks/results/gpu-h200.json.
MACHINES = ()


def tiles(count: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """Tiles that do not spill; float64 holds a three-dimensional product in registers."""
    width = max(16, triton.next_power_of_2(count))
    if dtype == torch.float64:
        pixels = 16 if width <= 64 else 8
        return [{"PIXELS": pixels, "CHANNELS": max(1, 2048 // (pixels * width)), "CODES": width, "num_warps": 8}]
    pixels = 16 if width > 128 else 32 if width > 64 or width == 32 else 64
    warps = 8 if width in (32, 64) else 4
    first = {
        "PIXELS": pixels, "CHANNELS": 16, "CODES": width, "num_warps": warps, "num_stages": 2 if width == 32 else 1,
    }  # fmt: skip
    return tuning.variants(first, {"PIXELS": max(16, pixels // 2)}, {"CHANNELS": 32})


def gradient_tiles(count: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """Those of the gradient, which has no CHANNELS."""
    first = {key: value for key, value in tiles(count, dtype)[0].items() if key != "CHANNELS"}
    if first["CODES"] == 32:
        first["PIXELS"] = 16
    return tuning.variants(first, {"PIXELS": max(16, first["PIXELS"] // 2)}, {"num_warps": 2 * first["num_warps"]})


def encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """x (N, D, P), codewords (K, D), scale (K) to (N, K, D)."""
    (items, channels, pixels), count = x.shape, len(codewords)
    if items == 0:
        return x.new_empty(0, count, channels)
    dtype, x = x.dtype, wide(x)
    mean, columns, scale = codewords.mean(0), codewords.T.contiguous(), scale.contiguous()

    def launch(constants: dict) -> tuple[Tensor, Tensor]:
        blocks = triton.cdiv(pixels, constants["PIXELS"])
        parts, sums = x.new_empty(items, blocks, channels, count), x.new_empty(items, blocks, count)
        encode_kernel[(items * blocks,)](
            x, columns, scale, mean, parts, sums, pixels, blocks, channels, count, *x.stride(), **constants
        )
        return parts.sum(1), sums.sum(1)

    total, sums = tuning.run("encoding.encode", launch, tiles(count, x.dtype), MACHINES, x, *x.shape, count)
    return (total.mT - sums[:, :, None] * (codewords - mean)).to(dtype).contiguous()


def encoding_backward(grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, codewords and scale."""
    (items, channels, pixels), count = x.shape, len(codewords)
    if items == 0:
        return x.new_empty(x.shape), torch.zeros_like(codewords).contiguous(), torch.zeros_like(scale).contiguous()
    dtype, x, grad = x.dtype, wide(x), wide(grad)
    both, columns = x.new_empty(items, pixels, 2 * count), grad.mT.contiguous()
    codes, scale = codewords.T.contiguous(), scale.contiguous()

    def launch(constants: dict) -> Tensor:
        blocks = triton.cdiv(pixels, constants["PIXELS"])
        scales = x.new_empty(items, blocks, count)
        differentiate_kernel[(items * blocks,)](
            columns, x, codes, scale, both, scales, pixels, blocks, channels, count, *x.stride(), **constants
        )
        return scales.sum((0, 1))

    candidates = gradient_tiles(count, x.dtype)
    grad_scale = tuning.run("encoding.differentiate", launch, candidates, MACHINES, x, *x.shape, count)
    assignment, pull = both.split(count, 2)
    mean = codewords.mean(0)
    centred, residual = x - mean[:, None], codewords - mean
    coefficients = torch.cat([columns, -residual.T.expand(items, -1, -1)], 2)
    grad_x = torch.baddbmm(centred * pull.sum(2)[:, None], coefficients, both.mT)
    toward = torch.bmm(pull.mT, centred.mT).sum(0) - pull.sum((0, 1))[:, None] * residual
    return grad_x.to(dtype), -(assignment.sum(1)[:, :, None] * grad).sum(0) - toward, grad_scale


_POINTERS = ("grad", "x", "codes", "scale", "mean", "parts", "sums", "both", "scales")


def _aot(kernel: Any, candidates: Any) -> list[tuple]:
    return [
        (
            kernel,
            {name: t if name in _POINTERS else "i32" for name in kernel.arg_names},
            [candidates(count, dtype) for count in (32, 8, 64, 128, 256)],
        )
        for t, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64))
    ]


AOT = _aot(encode_kernel, tiles) + _aot(differentiate_kernel, gradient_tiles)
