"""segops.pyramid_pool: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import pyramid_pool as reference

Sizes = Sequence[int | tuple[int, int]]


def pyramid_pool(x: Tensor, sizes: Sizes = (1, 3, 6, 8)) -> Tensor:
    r"""Averages of a map over _grids of several sizes, all of them in one pass over the map.

    What the pyramid pooling of Zhao et al., *Pyramid Scene Parsing Network*, 2017, does before its convolutions, with
    (1, 2, 3, 6), and the sampling of Zhu et al., *Asymmetric Non-local Neural Networks for Semantic Segmentation*,
    2019, with (1, 3, 6, 8). Every level is ``torch.nn.functional.adaptive_avg_pool2d``: along ``L`` positions, bin i
    of n is :math:`[\lfloor i L / n \rfloor, \lceil (i + 1) L / n \rceil)`, so that bins overlap where n does not
    divide L, and repeat positions where n is larger.

    Args:
        x: map ``(N, C, H, W)``; float64, float32, bfloat16 or float16 (summed in float32).
        sizes: of the levels: n for n x n bins, or a pair of rows and columns. Default (1, 3, 6, 8), 110 bins.

    Returns:
        ``(N, C, S)`` in the dtype of ``x`` (float32 inside autocast), contiguous: the bins of the first level
        row-major, then those of the second, and so on. Not-a-number and infinite values spread to their bins alone.

    Linear, and differentiable any number of times.

    Raises:
        TypeError: for what is no dense floating-point tensor, or sizes that are no integers.
        ValueError: for an empty map, no sizes, or a size below 1.

    Example:
        >>> import torch, segops
        >>> x = torch.arange(12.0).view(1, 1, 3, 4)
        >>> segops.pyramid_pool(x, (1, 2))
        tensor([[[5.5000, 2.5000, 4.5000, 6.5000, 8.5000]]])
        >>> segops.pyramid_pool(x, [(1, 4)])
        tensor([[[4., 5., 6., 7.]]])
    """
    _checks.logit_map("x", x)
    rows, columns = _grids(sizes)
    out = _registry.call(torch.ops.segops.pyramid_pool, _checks.widened(x), rows, columns)
    return _checks.narrowed(out, x)


def _grids(sizes: Sizes) -> tuple[list[int], list[int]]:
    """The rows and the columns of each level."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"sizes: expected a sequence of integers or pairs, got {type(sizes).__name__}")
    pairs = [tuple(size) if isinstance(size, Sequence) else (size, size) for size in sizes]
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"sizes[{i}]: expected an integer or a pair, got {sizes[i]}")
        if any(_checks.integer(f"sizes[{i}]", n) < 1 for n in pair):
            raise ValueError(f"sizes[{i}]: expected at least 1, got {sizes[i]}")
    if not pairs:
        raise ValueError("sizes: expected at least one, got none")
    return [int(rows) for rows, _ in pairs], [int(columns) for _, columns in pairs]


def _fake(x: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], sum(r * c for r, c in zip(rows, columns, strict=True)))


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.rows, ctx.columns = inputs
    ctx.height, ctx.width = x.shape[2:]


def _backward(ctx, grad: Tensor):
    grad_x = torch.ops.segops.pyramid_pool_backward(grad, ctx.height, ctx.width, ctx.rows, ctx.columns)
    return grad_x, None, None


def _setup_context_backward(ctx, inputs, output) -> None:
    *_, ctx.rows, ctx.columns = inputs


def _backward_backward(ctx, grad: Tensor):
    return torch.ops.segops.pyramid_pool(grad, ctx.rows, ctx.columns), None, None, None, None


def _fake_backward(grad: Tensor, height: int, width: int, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[1], height, width)


_registry.register(
    "pyramid_pool(Tensor x, int[] rows, int[] columns) -> Tensor",
    file="pyramid_pool",
    reference=reference.pyramid_pool,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0,),
)
_registry.register(
    "pyramid_pool_backward(Tensor grad, SymInt height, SymInt width, int[] rows, int[] columns) -> Tensor",
    file="pyramid_pool",
    reference=reference.pyramid_pool_backward,
    fake=_fake_backward,
    backward=_backward_backward,
    setup_context=_setup_context_backward,
    batch=(0,),
)
