"""segops.interlaced_attention: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import interlaced_attention as reference

RELATIONS = ("global", "local")


def interlaced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    relation: str,
    down_factor: int | Sequence[int] = 8,
    scale: float | None = None,
) -> Tensor:
    r"""Dense attention within sparse groups of pixels: one of the two relations of interlaced self-attention.

    Huang et al., *Interlaced Sparse Self-Attention for Semantic Segmentation*, 2019. With ``down_factor = (P, Q)`` a
    map falls into blocks of P x Q pixels. In the **local** relation (short-range, which the paper has second) a pixel
    attends to its own block; in the **global** one (long-range, first) to the pixels at its own place of every block,
    a lattice of steps P and Q. After both every pixel has seen every other. The paper projects queries, keys and values
    anew between them, so each is a call; :class:`segops.nn.InterlacedAttention` is the whole module.

    Where the size is no multiple of the factor, the blocks at the edges are narrower, evenly on both sides: blocks lie
    as they do in published code, which pads by ``pad // 2`` at the top and left. There, however, the padding takes part
    in both relations, as keys and as values, with whatever the projections make of zeros. To have that, pad the map
    before it is projected, as the module does; to this operator a pixel outside of the map does not exist.

    Args:
        query: ``(N, D, H, W)``; float64, float32, bfloat16 or float16 (summed in float32).
        key: like ``query``.
        value: ``(N, C, H, W)``, of the dtype of ``query``.
        relation: ``"global"`` or ``"local"``.
        down_factor: rows and columns of a block, or one number for both. Default 8, the paper's.
        scale: factor of the scalar products. Default ``D ** -0.5``, the paper's.

    Returns:
        ``(N, C, H, W)``, contiguous, in the dtype of ``value`` (float32 inside autocast): for every pixel the mean of
        ``value`` over its group, weighted by the softmax of ``scale * query . key``.

    Differentiable once with respect to ``query``, ``key`` and ``value``. NaN or infinite energies make the pixels NaN
    whose softmax they enter.

    Raises:
        TypeError: for what is no dense floating-point tensor, or for different dtypes.
        ValueError: for shapes, devices or options that do not fit, or no channels.

    Example:
        >>> import torch, segops
        >>> query, key = torch.randn(2, 1, 4, 6, 9)
        >>> value = torch.randn(1, 5, 6, 9, requires_grad=True)
        >>> out = segops.interlaced_attention(query, key, value, relation="global", down_factor=3)
        >>> out.shape
        torch.Size([1, 5, 6, 9])
        >>> out[0, 0, 1, 4].backward()
        >>> value.grad[0, 0].nonzero().tolist()
        [[1, 1], [1, 4], [1, 7], [4, 1], [4, 4], [4, 7]]
    """
    _checks.query_key_value(query, key, value)
    factors = _checks.pair("down_factor", down_factor, 1)
    _checks.choice("relation", relation, RELATIONS)
    factor = query.shape[1] ** -0.5 if scale is None else _checks.finite("scale", scale)
    return _registry.call(torch.ops.segops.interlaced_attention, query, key, value, factors, relation, factor)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake(query: Tensor, key: Tensor, value: Tensor, down_factor: list[int], relation: str, scale: float) -> Tensor:
    return _like(value)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.down_factor, ctx.relation, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    gradients = torch.ops.segops.interlaced_attention_backward(
        grad, *ctx.saved_tensors, ctx.down_factor, ctx.relation, ctx.scale
    )
    return *gradients, None, None, None


def _fake_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, down_factor: list[int], relation: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


_registry.register(
    "interlaced_attention(Tensor query, Tensor key, Tensor value, int[] down_factor, str relation, float scale)"
    " -> Tensor",
    file="interlaced_attention",
    reference=reference.interlaced_attention,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1, 2),
)
_registry.register(
    "interlaced_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, int[] down_factor, "
    "str relation, float scale) -> (Tensor, Tensor, Tensor)",
    file="interlaced_attention",
    reference=reference.interlaced_attention_backward,
    fake=_fake_backward,
)
