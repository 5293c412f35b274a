"""segops.aspp: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import aspp as reference
from ..reference.atrous_conv2d import memory_format
from .atrous_conv2d import _cast, _check_bias, _check_weight

COMBINATIONS = ("list", "concat", "sum", "hierarchical")


def aspp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    rates: Sequence[int],
    *,
    combine: str = "list",
) -> tuple[Tensor, ...] | Tensor:
    r"""Atrous spatial pyramid pooling: convolutions of one input at several rates, in one call.

    Branch b is :func:`segops.atrous_conv2d` with ``weights[b]``, ``biases[b]`` and dilation ``rates[b]``, padded so
    that the output has the size of the input. The input is brought into the order of the kernels once for all branches,
    and the gradients that it gets from them are summed before they are written. Chen et al., *DeepLab*, 2016 (v2,
    ``"sum"``), and *Rethinking Atrous Convolution for Semantic Image Segmentation*, 2017 (v3).

    Args:
        input: ``(N, C, H, W)``; float64, float32, bfloat16 or float16 (float32 sums), planes or channels_last.
        weights: of each branch ``(K, C, kh, kw)`` with odd kh and kw, in the dtype of ``input``; 1 x 1 is a branch too.
        biases: ``None``, or of each branch ``(K,)`` or ``None``.
        rates: of each branch its dilation.
        combine: ``"list"`` (default): the branches, as views of one tensor; ``"concat"``: that tensor,
            ``(N, sum of K, H, W)``, as DeepLab v3 has it; ``"sum"``: their sum, DeepLab v2; ``"hierarchical"``: the
            first branch, then the sums of the second to each of the others, concatenated, as in Mehta et al.,
            *ESPNet*, 2018. The last two need the same K everywhere.

    Returns:
        A tuple of ``(N, K, H, W)``, or one tensor; dtype and memory layout as of ``atrous_conv2d``.

    Differentiable once with respect to ``input``, ``weights`` and ``biases``.

    Raises:
        TypeError: for what is no dense floating-point tensor, dtypes that differ, or rates that are no integers.
        ValueError: for shapes, devices, numbers of branches or options that do not fit, no branch, or even kernels.

    Example:
        >>> import torch, segops
        >>> x, weights = torch.randn(1, 8, 33, 33), [torch.randn(4, 8, 3, 3) for _ in range(3)]
        >>> branches = segops.aspp(x, weights, None, rates=[6, 12, 18])
        >>> branches[2].shape, segops.aspp(x, weights, None, [6, 12, 18], combine="sum").shape
        (torch.Size([1, 4, 33, 33]), torch.Size([1, 4, 33, 33]))
    """
    _checks.floating("input", _checks.tensor("input", input, 4, "(N, C, H, W)"))
    _checks.choice("combine", combine, COMBINATIONS)
    weights, biases, rates = _branches(input, weights, biases, rates)
    counts = [w.shape[0] for w in weights]
    if combine in ("sum", "hierarchical") and len(set(counts)) > 1:
        raise ValueError(f"weights: expected the same K in all branches for combine={combine!r}, got {counts}")
    x, rest, dtype = _cast(input, *weights, *biases)
    ws, bs = rest[: len(weights)], rest[len(weights) :]
    bias = None
    if any(b is not None for b in bs):
        bs = [x.new_zeros(k) if b is None else b for b, k in zip(bs, counts, strict=True)]
        bias = torch.stack(bs).sum(0) if combine == "sum" else torch.cat(bs)
    out = _registry.call(torch.ops.segops.aspp, x, ws, bias, rates, combine == "sum", "auto")
    if combine == "hierarchical":
        first, others = out.unflatten(1, (len(counts), -1)).split([1, len(counts) - 1], 1)
        out = torch.cat([first, others.cumsum(1)], 1).flatten(1, 2)
    out = out.to(dtype)
    return out.split(counts, 1) if combine == "list" else out


def _branches(input: Tensor, weights, biases, rates) -> tuple[list[Tensor], list[Tensor | None], list[int]]:
    """All three checked, and of the same length."""
    for name, value in (("weights", weights), ("biases", biases or ()), ("rates", rates)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{name}: expected a list, one for each branch, got {type(value).__name__}")
    biases = [None] * len(weights) if biases is None else list(biases)
    if not weights or len(weights) != len(rates) or len(biases) != len(rates):
        raise ValueError(
            f"rates: expected one for each of at least one branch, got {len(rates)} with {len(weights)} weights and "
            f"{len(biases)} biases"
        )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        _check_weight(f"weights[{i}]", w, input, 1)
        if w.shape[2] % 2 == 0 or w.shape[3] % 2 == 0:
            raise ValueError(f"weights[{i}]: expected an odd height and width of the kernel, got {_checks.shape(w)}")
        if b is not None:
            _check_bias(f"biases[{i}]", b, w.shape[0], input)
    if 0 in input.shape[2:]:
        raise ValueError(f"input: expected at least one row and column, got shape {_checks.shape(input)}")
    return list(weights), biases, [_checks.count(f"rates[{i}]", rate, 1) for i, rate in enumerate(rates)]


def _fake(x, weights, bias, rates, sum, method) -> Tensor:
    counts = [w.shape[0] for w in weights]
    total = counts[0]
    if not sum:
        for k in counts[1:]:
            total = total + k
    shape = x.shape[0], total, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _setup_context(ctx, inputs, output) -> None:
    x, weights, _, *ctx.options = inputs
    ctx.save_for_backward(x, *weights)
    ctx.channels_last = memory_format(x) == torch.channels_last


def _backward(ctx, grad: Tensor):
    x, *weights = ctx.saved_tensors
    need_x, need_weights, need_bias = ctx.needs_input_grad[:3]
    rates, sum, method = ctx.options
    grad_x = grad_bias = None
    grad_weights: list[Tensor | None] = [None] * len(weights)
    if need_x:
        grad_x = torch.ops.segops.aspp_backward_input(grad, weights, rates, sum, ctx.channels_last, method)
    if any(need_weights):
        counts, kernels = [w.shape[0] for w in weights], [k for w in weights for k in w.shape[2:]]
        flat = torch.ops.segops.aspp_backward_weight(grad, x, counts, kernels, *ctx.options)
        parts = flat.split([w.numel() for w in weights])
        grad_weights = [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]
    if need_bias:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weights, grad_bias, None, None, None


def _fake_backward_input(grad, weights, rates, sum, channels_last, method) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = grad.shape[0], weights[0].shape[1], *grad.shape[2:]
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _fake_backward_weight(grad, x, counts, kernels, rates, sum, method) -> Tensor:
    taps = [k * h * w for k, h, w in zip(counts, kernels[::2], kernels[1::2], strict=True)]
    total = taps[0]
    for t in taps[1:]:
        total = total + t
    return x.new_empty(total * x.shape[1])


_registry.register(
    "aspp(Tensor x, Tensor[] weights, Tensor? bias, int[] rates, bool sum, str method) -> Tensor",
    file="aspp",
    reference=reference.aspp,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0,),
    autocast=None,
)
_registry.register(
    "aspp_backward_input(Tensor grad, Tensor[] weights, int[] rates, bool sum, bool channels_last, str method) "
    "-> Tensor",
    file="aspp",
    reference=reference.aspp_backward_input,
    fake=_fake_backward_input,
    batch=(0,),
    autocast=None,
)
_registry.register(
    "aspp_backward_weight(Tensor grad, Tensor x, int[] counts, int[] kernels, int[] rates, bool sum, str method) "
    "-> Tensor",
    file="aspp",
    reference=reference.aspp_backward_weight,
    fake=_fake_backward_weight,
    autocast=None,
)
