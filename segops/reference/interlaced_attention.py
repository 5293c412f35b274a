"""Interlaced sparse self-attention: one relation of Huang et al., 2019, section 3.2, by permuted copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .halves import wide

# From (N, C, blocks down, rows, blocks across, columns) to (N, two dimensions of groups, C, two of members).
ORDER = {"global": (0, 3, 5, 1, 2, 4), "local": (0, 2, 4, 1, 3, 5)}


def padding(size: int, factor: int) -> tuple[int, int]:
    """What makes a size a multiple of the factor, half of it (rounded down) before."""
    missing = -size % factor
    return missing // 2, missing - missing // 2


def grouped(x: Tensor, down_factor: Sequence[int], relation: str) -> Tensor:
    """(N, C, H, W), zeros around it, to (N, groups, C, members): algorithm 1 of the paper."""
    rows, columns = down_factor
    x = pad(x, (*padding(x.shape[3], columns), *padding(x.shape[2], rows)))
    n, c, height, width = x.shape
    x = x.reshape(n, c, height // rows, rows, width // columns, columns)
    return x.permute(ORDER[relation]).flatten(4).flatten(1, 2)


def ungrouped(x: Tensor, like: Tensor, down_factor: Sequence[int], relation: str) -> Tensor:
    """And back, without what was added around it."""
    (height, width), (rows, columns) = like.shape[2:], down_factor
    top, left = padding(height, rows)[0], padding(width, columns)[0]
    down, across = -(-height // rows), -(-width // columns)
    order = ORDER[relation]
    shape = [(x.shape[0], x.shape[2], down, rows, across, columns)[i] for i in order]
    x = x.reshape(shape).permute([order.index(i) for i in range(6)])
    x = x.reshape(x.shape[0], x.shape[1], down * rows, across * columns)
    return x[:, :, top : top + height, left : left + width].contiguous()


def attention(query: Tensor, key: Tensor, down_factor: Sequence[int], relation: str, scale: float) -> Tensor:
    """The weights (N, groups, queries, keys), 0 for keys that lie outside of the map."""
    inside = grouped(torch.ones_like(query[:1, :1]), down_factor, relation) > 0
    energies = scale * grouped(query, down_factor, relation).mT @ grouped(key, down_factor, relation)
    return energies.masked_fill(~inside, torch.finfo(energies.dtype).min).softmax(-1)


def interlaced_attention(
    query: Tensor, key: Tensor, value: Tensor, down_factor: Sequence[int], relation: str, scale: float
) -> Tensor:
    """query, key (N, D, H, W), value (N, C, H, W) to (N, C, H, W)."""
    weights = attention(wide(query), wide(key), down_factor, relation, scale)
    out = ungrouped(grouped(wide(value), down_factor, relation) @ weights.mT, value, down_factor, relation)
    return out.to(value.dtype)


def interlaced_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, down_factor: Sequence[int], relation: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    dtype = query.dtype
    grad, query, key, value = map(wide, (grad, query, key, value))
    weights = attention(query, key, down_factor, relation, scale)
    g, q, k, v = (grouped(x, down_factor, relation) for x in (grad, query, key, value))
    grad_weights = g.mT @ v
    grad_energies = scale * weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
    gradients = ((k @ grad_energies.mT, query), (q @ grad_energies, key), (g @ weights, value))
    results = (ungrouped(x, like, down_factor, relation).to(dtype) for x, like in gradients)
    return tuple(results)  # type: ignore[return-value]
