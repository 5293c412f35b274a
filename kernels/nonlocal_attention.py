"""Non-local attention on a GPU: a tile of queries goes through all keys, with an online softmax.

Idea. Forward, a program has a tile of queries and a block of the values' channels: energies of a tile of keys, weights
against the largest energy so far, their product with the values. Backward, two kernels make the weights anew from the
log of the sum of exponentials: one multiplies them, transposed, with the result's gradient (for the values), the other
turns them into gradients of energies and multiplies these with keys (for the queries) or with queries (for the keys).
Each program owns what it writes: no atomics, and results repeat. Wide heads are split: sums run over DEPTH channels at
a time, and results have CHANNELS of them to a program, which takes the energies again for each block. The inputs are
copied once with their channels side by side: positions seldom come in multiples that a wide load could use.

Precision. Sums are float32. float32 products are split into three TF32 products, which keeps about 22 bits, unless
torch.backends.cuda.matmul.allow_tf32 is set; halves are multiplied as they are, weights rounded to the inputs' dtype;
float64 does without tensor cores.

Cost. P K (D + C) multiply-adds forward for queries P and keys K, P K (4 D + 4 C) backward, as long as CHANNELS reaches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from segops.kernels.channels_last import LOWEST, inner, last, load_tile, scalar_products, store_tile
from segops.kernels.integers import cdiv, tile_width
from segops.kernels.tile_product import add_product, precision
from torch import Tensor

from segops.kernels import tuning
from segops.reference.halves import sum_dtype


@triton.jit
def place(blocks, BLOCK: tl.constexpr):
    """Item of the batch and positions of a program."""
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def attend_kernel(
    query, key, value, out, lse, scale, queries, keys, dims_stride, channels_stride, channels, blocks,
    WHOLE: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The mean of the values by the softmax, and the log of its sum."""
    item, i = place(blocks, OWN)
    query += item * queries * dims_stride
    key += item * keys * dims_stride
    value += item * keys * channels_stride
    factor = tl.load(scale)
    own = load_tile(query, i[:, None], tl.arange(0, DEPTH)[None, :], queries, dims_stride)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    top = tl.full([OWN], LOWEST, lse.dtype.element_ty)
    total = tl.zeros([OWN], lse.dtype.element_ty)
    mean = tl.zeros([OWN, CHANNELS], lse.dtype.element_ty)
    for begin in range(0, keys, OTHER):
        j = begin + tl.arange(0, OTHER)
        energy = scalar_products(own, query, key, i, j, queries, keys, dims_stride, WHOLE, DEPTH, PRECISION)
        energy = tl.where((j < keys)[None, :], energy * factor, float("-inf"))
        higher = tl.maximum(top, tl.max(energy, axis=1))
        weight = tl.exp(energy - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weight, axis=1)
        x = load_tile(value, j[:, None], c[None, :], keys, channels_stride)
        mean = add_product(mean * shrink[:, None], weight.to(x.dtype), x, PRECISION)
        top = higher
    store_tile(out + item * channels * queries, mean / total[:, None], i, c, queries, channels, queries)
    if tl.program_id(1) == 0:
        tl.store(lse + item * queries + i, top + tl.log(total), mask=i < queries)


@triton.jit
def weights_of(
    x, own, other, lse, i, j, own_length, other_length, stride, factor,
    OF_KEYS: tl.constexpr, WHOLE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax once more; the queries, whose it is, are j where OF_KEYS, else i. x is as in scalar_products."""
    energy = scalar_products(x, own, other, i, j, own_length, other_length, stride, WHOLE, DEPTH, PRECISION) * factor
    if OF_KEYS:
        shift = tl.load(lse + j, mask=j < other_length, other=0.0)[None, :]
    else:
        shift = tl.load(lse + i, mask=i < own_length, other=0.0)[:, None]
    return tl.exp(tl.where((j < other_length)[None, :], energy - shift, float("-inf")))


@triton.jit
def value_gradient_kernel(
    key, query, lse, grad, out, scale, queries, keys, dims_stride, channels_stride, channels, blocks,
    WHOLE: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The transposed weights times the result's gradient."""
    item, i = place(blocks, OWN)
    key += item * keys * dims_stride
    query += item * queries * dims_stride
    lse += item * queries
    grad += item * queries * channels_stride
    factor = tl.load(scale)
    own = load_tile(key, i[:, None], tl.arange(0, DEPTH)[None, :], keys, dims_stride)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([OWN, CHANNELS], lse.dtype.element_ty)
    for begin in range(0, queries, OTHER):
        j = begin + tl.arange(0, OTHER)
        weight = weights_of(
            own, key, query, lse, i, j, keys, queries, dims_stride, factor, True, WHOLE, DEPTH, PRECISION
        )
        x = load_tile(grad, j[:, None], c[None, :], queries, channels_stride)
        total = add_product(total, weight.to(x.dtype), x, PRECISION)
    store_tile(out + item * channels * keys, total, i, c, keys, channels, keys)


@triton.jit
def energy_gradient_kernel(
    own, other, left, right, lse, mean, out, scale,
    own_length, other_length, dims_stride, channels_stride, dims, blocks,
    OF_KEYS: tl.constexpr, WHOLE: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    DEPTH: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of own: queries with left = grad and right = value, or keys with left = value and right = grad.

    Gradients of weights are left times right, those of energies weight (left right - mean), and they multiply other.
    """
    item, i = place(blocks, OWN)
    own += item * own_length * dims_stride
    other += item * other_length * dims_stride
    left += item * own_length * channels_stride
    right += item * other_length * channels_stride
    softmaxes = item * (other_length if OF_KEYS else own_length)
    lse += softmaxes
    mean += softmaxes
    factor = tl.load(scale)
    x = load_tile(own, i[:, None], tl.arange(0, DEPTH)[None, :], own_length, dims_stride)
    y = load_tile(left, i[:, None], tl.arange(0, DEPTH)[None, :], own_length, channels_stride)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([OWN, CHANNELS], lse.dtype.element_ty)
    for begin in range(0, other_length, OTHER):
        j = begin + tl.arange(0, OTHER)
        weight = weights_of(
            x, own, other, lse, i, j, own_length, other_length, dims_stride, factor, OF_KEYS, WHOLE, DEPTH, PRECISION
        )
        if OF_KEYS:
            away = tl.load(mean + j, mask=j < other_length, other=0.0)[None, :]
        else:
            away = tl.load(mean + i, mask=i < own_length, other=0.0)[:, None]
        grad = scalar_products(
            y, left, right, i, j, own_length, other_length, channels_stride, WHOLE, DEPTH, PRECISION
        )  # fmt: skip
        weight *= grad - away
        z = load_tile(other, j[:, None], d[None, :], other_length, dims_stride)
        total = add_product(total, weight.to(z.dtype), z, PRECISION)
    store_tile(out + item * dims * own_length, total * factor, i, d, own_length, dims, own_length)


MACHINES = ()  # where the first candidates were measured: nowhere, by benchmarks/results/


def options(dtype: torch.dtype, results: int, *depths: int) -> list[dict[str, int | str]]:
    """The constants of a launch that sums over ``depths`` channels for results of so many. First the largest tiles that
    do not spill, and of halves the whole depth where shared memory has room for it; float64 holds a three-dimensional
    product in registers, and has no other tiles."""
    depth = max(depths)
    if dtype == torch.float64:
        sizes = {"OWN": 16, "OTHER": 8, "DEPTH": 8, "CHANNELS": 8, "num_warps": 4, "num_stages": 1}
    elif dtype == torch.float32:
        sizes = {"DEPTH": 32, "CHANNELS": min(128, tile_width(results)), "num_stages": 1}
    else:
        whole = depth <= 256 and shared_memory_is_roomy()
        sizes = {"DEPTH": 256 if whole else 64, "CHANNELS": min(256, tile_width(results)), "num_stages": 2}
    sizes = {"OWN": 64, "OTHER": 32, "num_warps": 4 if results <= 32 else 8, **sizes}
    if dtype != torch.float64:
        sizes["DEPTH"] = min(sizes["DEPTH"], tile_width(depth))
    first = {**sizes, "WHOLE": depth <= sizes["DEPTH"], "PRECISION": precision()}
    return [first] if dtype == torch.float64 else tuning.variants(first, {"OTHER": 16}, {"OWN": 32})


def shared_memory_is_roomy() -> bool:
    """164 KiB to a program, as data centres' GPUs have it; others have 99."""
    return not torch.cuda.is_available() or torch.cuda.get_device_properties().shared_memory_per_block_optin > 163000


def grid(positions: Tensor, channels: int, constants: dict) -> tuple[tuple[int, int], int]:
    """Programs for all of (N, ..., positions) by blocks of channels, and how many of them an image has."""
    blocks = cdiv(positions.shape[2], constants["OWN"])
    return (positions.shape[0] * blocks, cdiv(channels, constants["CHANNELS"])), blocks


def nonlocal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """query (N, D, P), key (N, D, K), value (N, C, K) to (N, C, P) and the softmaxes' log-sums (N, P)."""
    n, dims, queries = query.shape
    channels, keys = value.shape[1:]
    out = query.new_empty(n, channels, queries)
    lse = query.new_empty(n, queries, dtype=sum_dtype(query))
    if n:
        factor = lse.new_full((1,), scale)  # a number would come as float32
        query, key, value = map(last, (query, key, value))

        def launch(constants: dict) -> None:
            programs, blocks = grid(out, channels, constants)
            attend_kernel[programs](
                query, key, value, out, lse, factor,
                queries, keys, query.shape[2], value.shape[2], channels, blocks, **constants,
            )  # fmt: skip

        candidates, sizes = options(query.dtype, channels, dims), (n * queries, keys, dims, channels)
        tuning.run("nonlocal_attention.attend", launch, candidates, MACHINES, query, *sizes)
    return out, lse


def nonlocal_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    n, dims, queries = query.shape
    channels, keys = value.shape[1:]
    results = [x.new_empty(x.shape) for x in (query, key, value)]
    if n == 0:
        return tuple(results)  # type: ignore[return-value]
    factor, lse = lse.new_full((1,), scale), lse.contiguous()
    mean = inner(grad, out, lse.dtype)
    grad, query, key, value = map(last, (grad, query, key, value))

    def of_value(constants: dict) -> None:
        programs, blocks = grid(results[2], channels, constants)
        value_gradient_kernel[programs](
            key, query, lse, grad, results[2], factor,
            queries, keys, query.shape[2], value.shape[2], channels, blocks, **constants,
        )  # fmt: skip

    def of_energies(constants: dict) -> None:
        for of_keys, own, other, left, right in ((False, query, key, grad, value), (True, key, query, value, grad)):
            programs, blocks = grid(results[of_keys], dims, constants)
            energy_gradient_kernel[programs](
                own, other, left, right, lse, mean, results[of_keys], factor,
                own.shape[1], other.shape[1], own.shape[2], left.shape[2], dims, blocks, OF_KEYS=of_keys, **constants,
            )  # fmt: skip

    sizes = (n * queries, keys, dims, channels)
    candidates = options(query.dtype, channels, dims)
    tuning.run("nonlocal_attention.value_gradient", of_value, candidates, MACHINES, query, *sizes)
    candidates = options(query.dtype, dims, dims, channels)
    tuning.run("nonlocal_attention.energy_gradient", of_energies, candidates, MACHINES, query, *sizes)
    return tuple(results)  # type: ignore[return-value]


def _aot() -> Iterator[tuple]:
    inputs = ("query", "key", "value", "out", "grad", "own", "other", "left", "right")
    for pointer, sums, dtype in (
        ("*fp32", "*fp32", torch.float32),
        ("*bf16", "*fp32", torch.bfloat16),
        ("*fp64", "*fp64", torch.float64),
    ):
        for kernel in (attend_kernel, value_gradient_kernel, energy_gradient_kernel):
            types = {name: pointer for name in inputs if name in kernel.arg_names}
            types |= {name: sums for name in ("lse", "mean", "scale") if name in kernel.arg_names}
            sides = [{"OF_KEYS": k} for k in (False, True)] if kernel is energy_gradient_kernel else [{}]
            widths = {torch.float64: (8,), torch.float32: (16, 64, 512)}.get(dtype, (16, 256, 512))
            precisions = ("tf32", "tf32x3") if dtype == torch.float32 else ("tf32",)
            every = itertools.product(sides, widths, precisions)
            yield (
                kernel,
                types,
                [[{**side, **o, "PRECISION": p} for o in options(dtype, w, w)] for side, w, p in every],
            )


AOT = list(_aot())
