"""Criss-cross attention by its definition, the weights of every pixel's row and column in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .halves import wide


def energies(query: Tensor, key: Tensor) -> Tensor:
    """query, key (N, D, H, W) to (N, H, W, H + W): of every pixel with its column, -inf for itself, and with its row.

    Equation 1 of the paper, the affinity; the softmax of these is over the H + W - 1 pixels of the criss-cross path.
    """
    itself = torch.eye(query.shape[2], dtype=torch.bool, device=query.device)[:, None, :]
    column = torch.einsum("nchw,nciw->nhwi", query, key).masked_fill(itself, -torch.inf)
    return torch.cat([column, torch.einsum("nchw,nchj->nhwj", query, key)], -1)


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """value (N, C, H, W): the mean of the criss-cross path by the softmax, equation 2 without the residual; and, of
    every pixel, log(sum(exp(energies))), (N, H, W)."""
    every, x = energies(wide(query), wide(key)), wide(value)
    column, row = every.softmax(-1).split(value.shape[2:], -1)
    out = torch.einsum("nhwi,nciw->nchw", column, x) + torch.einsum("nhwj,nchj->nchw", row, x)
    return out.to(value.dtype).contiguous(), every.logsumexp(-1).detach()  # for the backward pass only


def criss_cross_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; ``out`` and ``lse`` are the results of the forward."""
    dtype = query.dtype
    grad, query, key, value, out = map(wide, (grad, query, key, value, out))
    column, row = (energies(query, key) - lse[..., None]).exp().split(query.shape[2:], -1)
    grad_value = torch.einsum("nhwi,nchw->nciw", column, grad) + torch.einsum("nhwj,nchw->nchj", row, grad)
    mean = (grad * out).sum(1)[..., None]  # of the weights' gradients, which the softmax takes off
    column = column * (torch.einsum("nchw,nciw->nhwi", grad, value) - mean)  # from here on of the energies
    row = row * (torch.einsum("nchw,nchj->nhwj", grad, value) - mean)
    grad_query = torch.einsum("nhwi,nciw->nchw", column, key) + torch.einsum("nhwj,nchj->nchw", row, key)
    grad_key = torch.einsum("nhwi,nchw->nciw", column, query) + torch.einsum("nhwj,nchw->nchj", row, query)
    return tuple(x.to(dtype).contiguous() for x in (grad_query, grad_key, grad_value))  # type: ignore[return-value]
