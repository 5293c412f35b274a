"""segops.em_attention: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import em_attention as reference

EPS_MODES = ("add", "clamp")


def em_attention(
    x: Tensor, bases: Tensor, *, iterations: int = 3, unrolled: bool = False, eps_mode: str = "add"
) -> tuple[Tensor, Tensor]:
    r"""Expectation-maximization attention: pixels described by a few bases that are fitted to them.

    The loop of the EMA unit of Li et al., *Expectation-Maximization Attention Networks for Semantic Segmentation*,
    2019. From the bases :math:`\mu` that are given, each iteration computes responsibilities and new bases,

    .. math:: z_{nk} = softmax_k(x_n \cdot \mu_k), \quad
              m_k = \frac{\sum_n z_{nk} x_n}{\sum_n z_{nk}}, \quad \mu_k = \frac{m_k}{\|m_k\|_2},

    and the output is :math:`\sum_k z_{nk} \mu_k` with the responsibilities of the last iteration and the bases after
    it. E and M step take one pass over ``x``; a tile of responsibilities exists at a time.

    Args:
        x: features ``(N, C, H, W)`` or ``(N, C, P)``; float64, float32, bfloat16 or float16 (summed in float32).
        bases: ``(N, C, K)``, or ``(1, C, K)`` for the whole batch, usually of unit length over C; cast to the dtype of
            the computation.
        iterations: T, at least 1. Default 3.
        unrolled: ``False`` (default) is as published: the iterations stand under ``no_grad``, and **no gradient at
            all** reaches ``x`` or ``bases``. ``True`` differentiates through all of them.
        eps_mode: what keeps the two divisors from 0: ``"add"`` (default) adds 1e-6 as EMANet does, ``"clamp"`` takes
            the larger of divisor and 1e-12, as mmsegmentation does by ``F.normalize``.

    Returns:
        The output in the shape and dtype of ``x``, and the bases ``(N, C, K)`` after the last iteration in the dtype of
        ``bases`` (both float32 inside autocast). Contiguous; not-a-number and infinite features spread as in plain
        PyTorch, over their whole image.

    Raises:
        TypeError: for what is no dense floating-point tensor, or ``iterations`` that is no integer.
        ValueError: for shapes, devices or options that do not fit, no pixels, no channels or no bases.

    Example:
        >>> import torch, segops
        >>> x, bases = torch.randn(2, 16, 9, 9), torch.nn.functional.normalize(torch.randn(1, 16, 4), dim=1)
        >>> output, fitted = segops.em_attention(x, bases)
        >>> output.shape, fitted.shape, output.requires_grad
        (torch.Size([2, 16, 9, 9]), torch.Size([2, 16, 4]), False)
    """
    _checks.pixels("x", x)
    _checks.floating("bases", _checks.tensor("bases", bases, 3, "(N or 1, C, K)"))
    _checks.same_device("bases", bases, "x", x)
    if bases.shape[0] not in (1, x.shape[0]) or bases.shape[1] != x.shape[1] or bases.shape[2] == 0:
        raise ValueError(
            f"bases: expected shape ({x.shape[0]} or 1, {x.shape[1]}, K) with K >= 1 to go with x, "
            f"got {_checks.shape(bases)}"
        )
    if _checks.count("iterations", iterations) == 0:
        raise ValueError("iterations: expected at least 1, got 0")
    _checks.choice("eps_mode", eps_mode, EPS_MODES)
    pixels, start = x.flatten(2), bases.to(_checks.sum_dtype(x))
    if not unrolled:
        pixels, start = pixels.detach(), start.detach()
    out, history, _ = _registry.call(torch.ops.segops.em_attention, pixels, start, int(iterations), eps_mode)
    return _checks.narrowed(out, x).view(x.shape), _checks.narrowed(history[-1], bases)


def _fake(x: Tensor, bases: Tensor, iterations: int, eps_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    n, channels, count = x.shape[0], x.shape[1], bases.shape[2]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        bases.new_empty(iterations, n, channels, count),
        bases.new_empty(iterations, n, 2, count),
    )


def _setup_context(ctx, inputs, output) -> None:
    x, bases, _, ctx.eps_mode = inputs
    _, history, norms = output
    ctx.save_for_backward(x, bases, history, norms)
    ctx.mark_non_differentiable(norms)


def _backward(ctx, grad: Tensor, grad_history: Tensor, _grad_norms: Tensor):
    gradients = torch.ops.segops.em_attention_backward(grad, grad_history, *ctx.saved_tensors, ctx.eps_mode)
    return *gradients, None, None


def _fake_backward(grad, grad_history, x, bases, history, norms, eps_mode) -> tuple[Tensor, Tensor]:
    like = torch.contiguous_format
    return torch.empty_like(x, memory_format=like), torch.empty_like(bases, memory_format=like)


_registry.register(
    "em_attention(Tensor x, Tensor bases, int iterations, str eps_mode) -> (Tensor, Tensor, Tensor)",
    file="em_attention",
    reference=reference.em_attention,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_registry.register(
    "em_attention_backward(Tensor grad, Tensor grad_history, Tensor x, Tensor bases, Tensor history, Tensor norms, "
    "str eps_mode) -> (Tensor, Tensor)",
    file="em_attention",
    reference=reference.em_attention_backward,
    fake=_fake_backward,
)
