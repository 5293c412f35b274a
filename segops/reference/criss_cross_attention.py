"""Criss-cross attention by its definition, the weights of every pixel's row and column in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .halves import wide


def attention(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """query, key (N, D, H, W): weights of the column (N, H, W, H), 0 for the pixel itself, and of the row (N, H, W, W).

    Equation 1 of the paper, the affinity, and one softmax over the H + W - 1 pixels of the criss-cross path.
    """
    height = query.shape[2]
    itself = torch.eye(height, dtype=torch.bool, device=query.device)[:, None, :]
    column = torch.einsum("nchw,nciw->nhwi", query, key).masked_fill(itself, -torch.inf)
    row = torch.einsum("nchw,nchj->nhwj", query, key)
    weights = torch.cat([column, row], -1).softmax(-1)
    return weights[..., :height], weights[..., height:]


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """value (N, C, H, W): the mean of the criss-cross path by these weights, equation 2 without the residual."""
    column, row = attention(wide(query), wide(key))
    x = wide(value)
    out = torch.einsum("nhwi,nciw->nchw", column, x) + torch.einsum("nhwj,nchj->nchw", row, x)
    return out.to(value.dtype).contiguous()


def criss_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; ``out`` is the result of the forward."""
    dtype = query.dtype
    grad, query, key, value, out = map(wide, (grad, query, key, value, out))
    column, row = attention(query, key)
    grad_value = torch.einsum("nhwi,nchw->nciw", column, grad) + torch.einsum("nhwj,nchw->nchj", row, grad)
    mean = (grad * out).sum(1)[..., None]  # of the weights' gradients, which the softmax takes off
    column = column * (torch.einsum("nchw,nciw->nhwi", grad, value) - mean)  # from here on of the energies
    row = row * (torch.einsum("nchw,nchj->nhwj", grad, value) - mean)
    grad_query = torch.einsum("nhwi,nciw->nchw", column, key) + torch.einsum("nhwj,nchj->nchw", row, key)
    grad_key = torch.einsum("nhwi,nchw->nciw", column, query) + torch.einsum("nhwj,nchw->nchj", row, query)
    return tuple(x.to(dtype).contiguous() for x in (grad_query, grad_key, grad_value))  # type: ignore[return-value]
