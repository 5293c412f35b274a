"""segops.criss_cross_attention: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import criss_cross_attention as reference


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Attention of every pixel to its row and its column, without the attention map in memory.

    ``out[n, :, y, x]`` is the mean of ``value`` over the ``H + W - 1`` pixels of row y and column x, weighted by one
    softmax over the scalar products of ``query[n, :, y, x]`` with their keys: the affinity and aggregation of Huang et
    al., *CCNet: Criss-Cross Attention for Semantic Segmentation*, 2019. The pixel itself counts once. As there, the
    products are not divided by ``sqrt(D)``. Code that lets the pixel count twice, in its row and in its column, exists;
    the order in which old CUDA code lists the path has no bearing on the result.

    Args:
        query: ``(N, D, H, W)``; float64, float32, bfloat16 or float16 (summed in float32).
        key: like ``query``.
        value: ``(N, C, H, W)``, of the dtype of ``query``.

    Returns:
        ``(N, C, H, W)``, contiguous, in the dtype of ``value``, inside autocast that of torch's matrix products.

    Differentiable once with respect to ``query``, ``key`` and ``value``. NaN or infinite energies make the pixels NaN
    whose softmax they enter.

    Raises:
        TypeError: for what is no dense floating-point tensor, or for different dtypes.
        ValueError: for shapes or devices that do not fit, or no channels.

    Example:
        >>> import torch, segops
        >>> query, key = torch.randn(2, 1, 4, 6, 5)
        >>> value = torch.randn(1, 8, 6, 5, requires_grad=True)
        >>> out = segops.criss_cross_attention(query, key, value)
        >>> out.shape
        torch.Size([1, 8, 6, 5])
        >>> out[0, 0, 2, 3].backward()
        >>> int((value.grad != 0).sum())
        10
    """
    _checks.query_key_value(query, key, value)
    return _registry.call(torch.ops.segops.criss_cross_attention, *_checks.lowered(query, key, value))[0]


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return _like(value), value.new_empty((value.shape[0], *value.shape[2:]), dtype=_checks.sum_dtype(value))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _grad_lse: Tensor):
    return torch.ops.segops.criss_cross_attention_backward(grad, *ctx.saved_tensors)


def _fake_backward(grad, query, key, value, out, lse) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


_registry.register(
    "criss_cross_attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)",
    file="criss_cross_attention",
    reference=reference.criss_cross_attention,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1, 2),
    autocast=None,
)
_registry.register(
    "criss_cross_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse)"
    " -> (Tensor, Tensor, Tensor)",
    file="criss_cross_attention",
    reference=reference.criss_cross_attention_backward,
    fake=_fake_backward,
    autocast=None,
)
