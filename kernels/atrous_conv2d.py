"""Convolutions with holes on a GPU: implicit products of matrices that leave out the taps that only see padding.

Idea. A program has a rectangle of pixels of the result and a block of its channels. It goes over the taps of the
kernel; one whose sources all lie in the padding costs a comparison, for another the sources are loaded with zeros for
padding and multiplied with the tap's weights. The gradient of the input is the same with the kernel turned around. For
the gradient of the weights a program has one tap, and goes over no pixels but those whose source lies in the map.

Memory. Planes and channels_last are read and written as they are, by their strides. Weights are copied, channels of the
result innermost. The weight's gradient has partial sums where there are few weights, which torch adds: no atomics, and
results repeat.

Precision. Half precision is summed in float32. float32 is multiplied as torch.backends.cudnn.allow_tf32 says, in TF32
as conv2d does by default, or split into three TF32 products, which keeps about 22 bits. float64 does without tensor
cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, tile_width
from segops.kernels.tile_product import add_product
from torch import Tensor

from segops.kernels import tuning
from segops.reference.atrous_conv2d import memory_format
from segops.reference.halves import sum_dtype


@triton.jit
def source_of(at, first, MULTIPLY: tl.constexpr, DIVIDE: tl.constexpr, count):
    """Where positions of the result read, and whether that is inside of the map."""
    place = at * MULTIPLY + first
    inside = (place >= 0) & (place < count * DIVIDE)
    if DIVIDE > 1:
        inside = inside & (place % DIVIDE == 0)
        place = place // DIVIDE
    return place, inside


@triton.jit
def convolve_kernel(
    source, weight, bias, out,
    height, width, out_height, out_width, depth, count, down, across, kernel_width, taps,
    first_y, first_x, step_y, step_x, s_n, s_c, s_y, s_x, o_n, o_c, o_y, o_x,
    MULTIPLY_Y: tl.constexpr, MULTIPLY_X: tl.constexpr, DIVIDE_Y: tl.constexpr, DIVIDE_X: tl.constexpr,
    BIAS: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RESULTS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of out (N, groups count, H, W), or with ADD what is added to it: the sum over taps of source (N, groups
    depth, ...) times weight (groups, taps, depth, count)."""
    tile, group = tl.program_id(0), tl.program_id(2).to(tl.int64)
    item = (tile // (down * across)).to(tl.int64)
    p = tl.arange(0, ROWS * COLUMNS)
    y = tile // across % down * ROWS + p // COLUMNS
    x = tile % across * COLUMNS + p % COLUMNS
    there = (y < out_height) & (x < out_width)
    r = tl.program_id(1) * RESULTS + tl.arange(0, RESULTS)
    real = tl.float64 if source.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([ROWS * COLUMNS, RESULTS], real)
    if BIAS:
        total += tl.load(bias + group * count + r, mask=r < count, other=0.0).to(real)[None, :]
    source += item * s_n + group * depth * s_c
    weight += group * taps * depth * count
    for tap in range(taps):
        line, inside_y = source_of(y, first_y + tap // kernel_width * step_y, MULTIPLY_Y, DIVIDE_Y, height)
        place, inside_x = source_of(x, first_x + tap % kernel_width * step_x, MULTIPLY_X, DIVIDE_X, width)
        here = there & inside_y & inside_x
        if tl.max(here.to(tl.int32), axis=0) > 0:
            pixel = line.to(tl.int64) * s_y + place.to(tl.int64) * s_x
            for first in range(0, depth, DEPTH):
                c = first + tl.arange(0, DEPTH).to(tl.int64)
                a = tl.load(
                    source + pixel[:, None] + c[None, :] * s_c, mask=here[:, None] & (c < depth)[None, :], other=0.0
                )
                b = tl.load(
                    weight + (tap * depth + c[:, None]) * count + r[None, :],
                    mask=(c < depth)[:, None] & (r < count)[None, :],
                    other=0.0,
                )
                total = add_product(total, a, b, PRECISION)
    pixel = item * o_n + y.to(tl.int64) * o_y + x.to(tl.int64) * o_x
    pointers = out + pixel[:, None] + ((group * count + r) * o_c)[None, :]
    mask = there[:, None] & (r < count)[None, :]
    if ADD:
        total += tl.load(pointers, mask=mask, other=0.0).to(real)
    tl.store(pointers, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def range_of(first, MULTIPLY: tl.constexpr, count, out_count):
    """The positions of the result, begin and number, whose source `position MULTIPLY + first` is in the map."""
    begin = (tl.maximum(-first, 0) + MULTIPLY - 1) // MULTIPLY
    end = tl.minimum(tl.maximum(count - first + MULTIPLY - 1, 0) // MULTIPLY, out_count)
    return begin, tl.maximum(end - begin, 0)


@triton.jit
def weight_kernel(
    source, grad, out, items, height, width, out_height, out_width, depth, count, kernel_width, taps, splits,
    first_y, first_x, step_y, step_x, s_n, s_c, s_y, s_x, g_n, g_c, g_y, g_x,
    MULTIPLY_Y: tl.constexpr, MULTIPLY_X: tl.constexpr,
    PIXELS: tl.constexpr, RESULTS: tl.constexpr, SOURCES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Part of the gradient of the weights, out (splits, groups, taps, count, depth), from every splits-th block."""
    tap = tl.program_id(0) % taps
    split = tl.program_id(0) // taps % splits
    group = (tl.program_id(0) // (taps * splits)).to(tl.int64)
    r = tl.program_id(1) * RESULTS + tl.arange(0, RESULTS).to(tl.int64)
    c = tl.program_id(2) * SOURCES + tl.arange(0, SOURCES).to(tl.int64)
    real = tl.float64 if source.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([RESULTS, SOURCES], real)
    down, right = first_y + tap // kernel_width * step_y, first_x + tap % kernel_width * step_x
    y_begin, rows = range_of(down, MULTIPLY_Y, height, out_height)
    x_begin, columns = range_of(right, MULTIPLY_X, width, out_width)
    source += (group * depth + c)[None, :] * s_c
    grad += (group * count + r)[:, None] * g_c
    area = rows * columns
    columns = tl.maximum(columns, 1)
    for begin in range(split * PIXELS, items * area, splits * PIXELS):
        p = begin + tl.arange(0, PIXELS)
        here = p < items * area
        item = (p // tl.maximum(area, 1)).to(tl.int64)
        y = (y_begin + p // columns % tl.maximum(rows, 1)).to(tl.int64)
        x = (x_begin + p % columns).to(tl.int64)
        a = tl.load(
            grad + (item * g_n + y * g_y + x * g_x)[None, :], mask=here[None, :] & (r < count)[:, None], other=0.0
        )
        b = tl.load(
            source + (item * s_n + (y * MULTIPLY_Y + down) * s_y + (x * MULTIPLY_X + right) * s_x)[:, None],
            mask=here[:, None] & (c < depth)[None, :],
            other=0.0,
        )
        total = add_product(total, a, b, PRECISION)
    groups = tl.num_programs(0) // (taps * splits)
    place = ((split * groups + group) * taps + tap) * count + r
    tl.store(out + place[:, None] * depth + c[None, :], total, mask=(r < count)[:, None] & (c < depth)[None, :])


def precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype != torch.float32 or torch.backends.cudnn.allow_tf32 else "tf32x3"


def width_of(channels: int, most: int) -> int:
    return min(most, tile_width(channels))


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def tiles(dtype: torch.dtype, way: str, count: int, width: int) -> list[dict[str, int]]:
    """Of a convolution, first the largest that does not spill; float64 holds a three-dimensional product in
    registers."""
    columns = 8 if width <= 8 else 16
    if dtype == torch.float64:
        return [{"ROWS": 16 // columns, "COLUMNS": columns, "RESULTS": 16, "DEPTH": 8, "num_warps": 4}]
    split = way == "tf32x3"
    results, pixels = width_of(count, 64 if split else 128), 64 if split else 128
    depth = 16 if split else 32
    sizes = {"COLUMNS": columns, "RESULTS": results, "DEPTH": depth, "num_stages": 2 if split else 3}
    first = {"ROWS": pixels // columns, **sizes, "num_warps": 4 if split and results <= 32 else 8}
    return tuning.variants(first, {"RESULTS": max(16, results // 2)}, {"num_stages": 5 - first["num_stages"]})


def weight_tiles(dtype: torch.dtype, way: str, count: int, depth: int) -> list[dict[str, int]]:
    if dtype == torch.float64:
        return [{"PIXELS": 8, "RESULTS": 16, "SOURCES": 16, "num_warps": 4}]
    split = way == "tf32x3"
    sizes = {"PIXELS": 16 if split else 32, "num_warps": 8, "num_stages": 2 if split else 3}
    first = {"RESULTS": width_of(count, 64), "SOURCES": width_of(depth, 64 if split else 128), **sizes}
    small = {"RESULTS": width_of(count, 32), "SOURCES": width_of(depth, 32)}
    return tuning.variants(first, small, {"num_stages": 5 - first["num_stages"]})


def by_result(weight: Tensor, groups: int) -> Tensor:
    """(K, C / groups, h, w) as (groups, taps, C / groups, K / groups)."""
    return weight.unflatten(0, (groups, -1)).flatten(3).permute(0, 3, 2, 1).contiguous()


def by_source(weight: Tensor, groups: int) -> Tensor:
    """(K, C / groups, h, w) as (groups, taps, K / groups, C / groups)."""
    return weight.unflatten(0, (groups, -1)).flatten(3).permute(0, 3, 1, 2).contiguous()


def convolve(
    source: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, kernel: Sequence[int], first: Sequence[int],
    step: Sequence[int], multiply: Sequence[int] = (1, 1), divide: Sequence[int] = (1, 1), add: bool = False,
) -> Tensor:  # fmt: skip
    """Fill out with source convolved by weight (groups, taps, depth, count), or add it."""
    groups, taps, depth, count = weight.shape
    (n, _, height, width), (out_height, out_width) = source.shape, out.shape[2:]
    if out.numel() == 0:
        return out
    way, begin = precision(source.dtype), out if bias is None else bias.contiguous()

    def launch(constants: dict, out: Tensor = out) -> None:
        down, across = cdiv(out_height, constants["ROWS"]), cdiv(out_width, constants["COLUMNS"])
        convolve_kernel[n * down * across, cdiv(count, constants["RESULTS"]), groups](
            source, weight, begin, out, height, width, out_height, out_width,
            depth, count, down, across, kernel[1], taps, *first, *step, *source.stride(), *out.stride(),
            MULTIPLY_Y=multiply[0], MULTIPLY_X=multiply[1], DIVIDE_Y=divide[0], DIVIDE_X=divide[1],
            BIAS=bias is not None, ADD=add, PRECISION=way, **constants,
        )  # fmt: skip

    def rehearse(constants: dict) -> None:
        """What may be done many times where the result is added to."""
        launch(constants, torch.empty_like(out) if add else out)

    candidates = tiles(source.dtype, way, count, out_width)
    sizes = (n * out_height * out_width, depth, count, groups, taps, *multiply, *divide, source.stride(1) == 1)
    launch(tuning.pick("atrous_conv2d.convolve", rehearse, candidates, MACHINES, source, *sizes))
    return out


def valid(size: Sequence[int], kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> float:
    """The share of the multiplications that are not by padding, with stride 1."""
    share = 1.0
    for n, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        count = n + 2 * p - d * (k - 1)
        inside = sum(max(0, min(count, n + p - i * d) - max(0, p - i * d)) for i in range(k))
        share *= inside / (count * k)
    return share


# The share of valid taps below which the kernels here are faster than cuDNN. Measured on an H200 with maps of half
# precision, 2048 -> 256 channels at 65 x 65: cuDNN skips nothing, but reaches two to three times the speed of Triton in
# the gradients, and in TF32.
FASTER_BELOW = {"forward": 0.8, "input": 0.45, "weight": 0.0}


def is_dense(
    method: str, product: str, dtype: torch.dtype, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> bool:  # fmt: skip
    """Whether torch's own convolution is taken: `method` is "skip", "dense", or "auto" for the faster."""
    if method != "auto":
        return method == "dense"
    if dtype not in (torch.bfloat16, torch.float16) or groups > 1 or tuple(stride) != (1, 1):
        return True
    return valid(size, kernel, padding, dilation) >= FASTER_BELOW[product]


def methods(x: Tensor, weight: Tensor, *geometry: Any) -> list[str]:
    """How the forward pass, the gradient of the input and that of the weight are taken."""
    return [
        "dense" if is_dense("auto", product, x.dtype, x.shape[2:], weight.shape[2:], *geometry) else "skip"
        for product in FASTER_BELOW
    ]


def by_pixel(x: Tensor) -> Tensor:
    """Half precision in channels_last, where vectors of channels are loaded at once."""
    return x.contiguous(memory_format=torch.channels_last) if x.element_size() == 2 else x


def atrous_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, method: str,
) -> Tensor:  # fmt: skip
    """x (N, C, H, W), weight (K, C / groups, h, w) to (N, K, H', W')."""
    if is_dense(method, "forward", x.dtype, x.shape[2:], weight.shape[2:], stride, padding, dilation, groups):
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), groups)
    size = [
        (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
    ]
    out = torch.empty(
        (x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )
    first = [-p for p in padding]
    return convolve(by_pixel(x), by_result(weight, groups), bias, out, weight.shape[2:], first, dilation, stride)


def atrous_conv2d_backward_input(
    grad: Tensor, weight: Tensor, height: int, width: int, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, channels_last: bool, method: str,
) -> Tensor:  # fmt: skip
    """The gradient of x (N, C, height, width)."""
    out = torch.empty(
        (grad.shape[0], weight.shape[1] * groups, height, width), dtype=grad.dtype, device=grad.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )  # fmt: skip
    if is_dense(method, "input", grad.dtype, (height, width), weight.shape[2:], stride, padding, dilation, groups):
        mask = (True, False, False)
        return torch.ops.aten.convolution_backward(
            grad, out, weight, None, stride, padding, dilation, False, (0, 0), groups, mask
        )[0]
    step = [-d for d in dilation]
    return convolve(
        by_pixel(grad), by_source(weight, groups), None, out, weight.shape[2:], padding, step, divide=stride
    )


def atrous_conv2d_backward_weight(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int, method: str,
) -> Tensor:  # fmt: skip
    """The gradient of the weight (K, C / groups, h, w)."""
    count, depth, taps = grad.shape[1] // groups, x.shape[1] // groups, kernel[0] * kernel[1]
    out = x.new_empty(grad.shape[1], depth, *kernel)
    if is_dense(method, "weight", x.dtype, x.shape[2:], kernel, stride, padding, dilation, groups):
        mask = (False, True, False)
        return torch.ops.aten.convolution_backward(
            grad, x, out, None, stride, padding, dilation, False, (0, 0), groups, mask
        )[1]
    if out.numel() == 0:
        return out
    grad, x = by_pixel(grad), by_pixel(x)
    way = precision(x.dtype)
    real = sum_dtype(x)
    positions = grad.shape[0] * grad.shape[2] * grad.shape[3]

    def launch(constants: dict) -> Tensor:
        blocks = cdiv(count, constants["RESULTS"]), cdiv(depth, constants["SOURCES"])
        programs = groups * taps * blocks[0] * blocks[1]
        splits = max(1, min(cdiv(positions, 8 * constants["PIXELS"]), 512 // programs))
        parts = torch.empty((splits, groups, taps, count, depth), dtype=real, device=x.device)
        weight_kernel[(groups * taps * splits, *blocks)](
            x, grad, parts, x.shape[0], *x.shape[2:], *grad.shape[2:], depth, count, kernel[1], taps, splits,
            -padding[0], -padding[1], *dilation, *x.stride(), *grad.stride(),
            MULTIPLY_Y=stride[0], MULTIPLY_X=stride[1], PRECISION=way, **constants,
        )  # fmt: skip
        return parts.sum(0) if splits > 1 else parts[0]

    candidates = weight_tiles(x.dtype, way, count, depth)
    sizes = (positions, depth, count, groups, taps, *stride, x.stride(1) == 1)
    summed = tuning.run("atrous_conv2d.weight", launch, candidates, MACHINES, x, *sizes)
    return out.copy_(summed.permute(0, 2, 3, 1).reshape(out.shape))  # from (groups, taps, count, depth)


def _aot() -> Iterator[tuple]:
    unit = dict.fromkeys(("MULTIPLY_Y", "MULTIPLY_X", "DIVIDE_Y", "DIVIDE_X"), 1)
    multiply = {"MULTIPLY_Y": 1, "MULTIPLY_X": 1}
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp64", torch.float64)):
        strides = {f"{t}_{d}": "i64" for t in "sog" for d in "ncyx"}
        pointers = dict.fromkeys(("source", "weight", "bias", "grad", "out"), f"*{kind}")
        types = {**strides, **pointers}
        sums = {**types, "out": "*fp32" if kind == "bf16" else f"*{kind}"}
        ways = ("tf32", "tf32x3") if dtype == torch.float32 else ("tf32",)
        yield (
            convolve_kernel,
            {k: t for k, t in types.items() if k in convolve_kernel.arg_names},
            [
                [{**unit, "BIAS": True, "ADD": False, "PRECISION": way, **c} for c in tiles(dtype, way, count, width)]
                for way in ways
                for count, width in ((256, 65), (32, 65), (256, 8))
            ],
        )
        yield (
            weight_kernel,
            {k: t for k, t in sums.items() if k in weight_kernel.arg_names},
            [
                [{**multiply, "PRECISION": way, **c} for c in weight_tiles(dtype, way, count, 512)]
                for way in ways
                for count in (256, 32)
            ],
        )


AOT = list(_aot())
