"""The encoding layer: Zhang et al., 2017 (Deep TEN), equations 1 and 2; 2018 (EncNet), equation 1."""

from __future__ import annotations

import torch
from torch import Tensor

from .halves import wide


def encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """x (N, D, P), codewords (K, D), scale (K) to (N, K, D); one codeword's residuals at a time."""
    dtype, x = x.dtype, wide(x)
    squares = torch.stack([(x - c[:, None]).square().sum(1) for c in codewords], 1)
    assignment = torch.softmax(scale[:, None] * squares, 1)  # (N, K, P)
    out = torch.stack([((x - c[:, None]) * assignment[:, k, None]).sum(2) for k, c in enumerate(codewords)], 1)
    return out.to(dtype)


def encoding_backward(grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, codewords and scale."""
    dtype, x, grad = x.dtype, wide(x), wide(grad)
    residuals = [x - c[:, None] for c in codewords]
    squares = torch.stack([r.square().sum(1) for r in residuals], 1)
    assignment = torch.softmax(scale[:, None] * squares, 1)
    slope = torch.stack([(grad[:, k, :, None] * r).sum(1) for k, r in enumerate(residuals)], 1)  # of the assignment
    slope = assignment * (slope - (assignment * slope).sum(1, keepdim=True))  # of the softmax's argument
    pull = 2 * scale[:, None] * slope
    grad_x, grad_codewords = torch.zeros_like(x, memory_format=torch.contiguous_format), []
    for k, r in enumerate(residuals):
        change = assignment[:, k, None] * grad[:, k, :, None] + pull[:, k, None] * r
        grad_x += change
        grad_codewords.append(-change.sum((0, 2)))
    return grad_x.to(dtype), torch.stack(grad_codewords), (slope * squares).sum((0, 2))
