"""What kernels share that assign pixels softly to bases or codewords: the softmax, and the sums of what it weighs.

Idea. The sums of weighted pixels are one long product of matrices. A program has some channels, some choices and a
slice of the pixels, keeps its part of the sums in registers, and writes it once; the parts are added without atomics,
so that results repeat.

Precision. Weights lie in memory as bfloat16 beside a map of bfloat16, and are summed as they were rounded; beside other
maps as sums do. See `mixed_product`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, tile_width
from segops.kernels.tile_product import mixed_product
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import sum_dtype

SLICE = 512  # pixels to a program: its part of the sums is an eighth of what it reads for 64 bases in float32


@triton.jit
def softmax(s, p, k, pixels, count):
    """s (pixels, choices) over the choices; 0 for what is no choice or no pixel."""
    s = tl.where((k < count)[None, :], s, float("-inf"))
    z = tl.exp(s - tl.max(s, axis=1)[:, None])
    z = z / tl.sum(z, axis=1)[:, None]
    return tl.where((p < pixels)[:, None], z, 0.0)


@triton.jit
def weigh_kernel(
    x, weights, mean, parts, sums, pixels, slices, channels, count, x_n, x_c, x_p, w_n, w_p,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, COUNT: tl.constexpr, SLICE: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """A slice's part of x, or x - mean where CENTRED, times weights (N, slices, C, K), and of the weights' sums."""
    part = tl.program_id(0).to(tl.int64)
    item = part // slices
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS).to(tl.int64)
    k = tl.program_id(2) * COUNT + tl.arange(0, COUNT)
    channel, choice = (c < channels)[:, None], (k < count)[None, :]
    x += item * x_n + c[:, None] * x_c
    weights += item * w_n + k[None, :]
    total = tl.zeros([CHANNELS, COUNT], parts.dtype.element_ty)
    weight = tl.zeros([COUNT], parts.dtype.element_ty)
    for first in range(0, SLICE, PIXELS):
        p = part % slices * SLICE + first + tl.arange(0, PIXELS)
        a = tl.load(x + p[None, :] * x_p, mask=channel & (p < pixels)[None, :], other=0.0)
        if CENTRED:
            a = a.to(total.dtype) - tl.load(mean + c, mask=c < channels, other=0.0)[:, None]
        b = tl.load(weights + p[:, None] * w_p, mask=(p < pixels)[:, None] & choice, other=0.0)
        total += mixed_product(a, b)
        weight += tl.sum(b.to(weight.dtype), axis=0)
    tl.store(parts + (part * channels + c[:, None]) * count + k[None, :], total, mask=channel & choice)
    if tl.program_id(1) == 0:
        tl.store(sums + part * count + k, weight, mask=k < count)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def kept(x: Tensor) -> torch.dtype:
    """What weights of x lie in memory as."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else sum_dtype(x)


def tiles(count: int, dtype: torch.dtype) -> list[dict[str, int]]:
    """Tiles that do not spill; float64 holds a three-dimensional product in registers."""
    columns = min(64, tile_width(count))
    if dtype == torch.float64:
        return [{"PIXELS": 8, "CHANNELS": 256 // columns, "COUNT": columns, "num_warps": 8}]
    pixels, warps = (64, 8) if dtype == torch.bfloat16 else (16, 4)
    first = {"PIXELS": pixels, "CHANNELS": 64, "COUNT": columns, "num_warps": warps, "num_stages": 3}
    return tuning.variants(first, {"PIXELS": 32, "num_warps": 8})


def weighed(x: Tensor, weights: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Parts of x (N, C, P), less the mean (C), times weights (N, P, K): (N, slices, C, K), and of the weights' sums
    (N, slices, K)."""
    (items, channels, pixels), count = x.shape, weights.shape[2]
    slices = cdiv(pixels, SLICE)
    parts = x.new_empty(items, slices, channels, count, dtype=sum_dtype(x))
    sums = parts.new_empty(items, slices, count)

    def launch(constants: dict) -> None:
        rows, columns = cdiv(channels, constants["CHANNELS"]), cdiv(count, constants["COUNT"])
        weigh_kernel[items * slices, rows, columns](
            x, weights, parts if mean is None else mean, parts, sums, pixels, slices, channels, count,
            *x.stride(), *weights.stride()[:2], SLICE=SLICE, CENTRED=mean is not None, **constants,
        )  # fmt: skip

    tuning.run("soft_assignment.weigh", launch, tiles(count, x.dtype), MACHINES, x, *x.shape, count, mean is not None)
    return parts, sums


# Of every dtype: Triton's names of pointers to maps, to weights and to all else.
POINTERS = (
    (torch.float32, "*fp32", "*fp32", "*fp32"),
    (torch.float64, "*fp64", "*fp64", "*fp64"),
    (torch.bfloat16, "*bf16", "*bf16", "*fp32"),
    (torch.float16, "*fp16", "*fp32", "*fp32"),
)

AOT = [
    (
        weigh_kernel,
        {"x": of_map, "weights": of_weights, "mean": of_sums, "parts": of_sums, "sums": of_sums},
        [
            [{"SLICE": SLICE, "CENTRED": on, **c} for c in tiles(count, dtype)]
            for count in (64, 19, 8)
            for on in ((False,) if dtype == torch.bfloat16 else (False, True))
        ],
    )
    for dtype, of_map, of_weights, of_sums in POINTERS
]
