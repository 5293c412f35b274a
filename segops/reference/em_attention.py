"""Expectation-maximization attention: Li et al., 2019, section 3.2, the iterations as EMANet's code has them."""

from __future__ import annotations

import torch
from torch import Tensor

from .halves import wide


def divided(x: Tensor, amount: Tensor, eps_mode: str) -> Tensor:
    """By a sum or a norm: EMANet adds 1e-6, mmsegmentation (as F.normalize) cuts off at 1e-12."""
    return x / (amount + 1e-6 if eps_mode == "add" else amount.clamp_min(1e-12))


def em_attention(x: Tensor, bases: Tensor, iterations: int, eps_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C, P), bases (N or 1, C, K) to the output (N, C, P), the bases after each iteration (T, N, C, K) and, for
    the backward pass, the sums of responsibilities and the norms that these were divided by (T, N, 2, K)."""
    dtype, x = x.dtype, wide(x)
    history, norms = [], []
    for _ in range(iterations):
        z = torch.softmax(x.mT @ bases, 2)  # E step, equation 4 with lambda = 1: (N, P, K)
        total = z.sum(1, keepdim=True)
        bases = x @ divided(z, total, eps_mode)  # M step, equation 5
        norm = torch.linalg.vector_norm(bases, dim=1, keepdim=True)
        bases = divided(bases, norm, eps_mode)
        history.append(bases)
        norms.append(torch.cat([total, norm], 1).detach())
    return (
        (bases @ z.mT).to(dtype),
        torch.stack(history),
        torch.stack(norms),
    )  # equation 6, z being that of the last E step


def maximise_backward(grad_mu: Tensor, mu: Tensor, norms: Tensor, eps_mode: str) -> tuple[Tensor, Tensor]:
    """From the gradient of the bases after an iteration to those of x z (N, C, K) and of the sums of z (N, 1, K)."""

    def slope(amount: Tensor) -> Tensor:  # of the divisor, 0 where it is cut off
        return torch.ones_like(amount) if eps_mode == "add" else (amount >= 1e-12).to(amount)

    total, norm = norms.split(1, 1)
    along = (grad_mu * mu).sum(1, keepdim=True) * slope(norm) / norm.clamp_min(torch.finfo(mu.dtype).tiny)
    scale = divided(torch.ones_like(norm), norm, eps_mode)
    grad_mean = grad_mu * scale - mu * along * (norm > 0)
    grad_total = -divided((grad_mean * mu / scale).sum(1, keepdim=True), total, eps_mode) * slope(total)
    return divided(grad_mean, total, eps_mode), grad_total


def em_attention_backward(
    grad: Tensor, grad_history: Tensor, x: Tensor, bases: Tensor, history: Tensor, norms: Tensor, eps_mode: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x and bases through all iterations, from those of the output and of the bases of each iteration."""
    dtype, x, grad = x.dtype, wide(x), wide(grad)
    before = [bases.expand(x.shape[0], -1, -1), *history]  # before each iteration, and after the last
    grad_x, grad_out_z = torch.zeros_like(x, memory_format=torch.contiguous_format), grad.mT @ before[-1]
    grad_mu = grad @ torch.softmax(x.mT @ before[-2], 2)
    for t in reversed(range(len(history))):
        z = torch.softmax(x.mT @ before[t], 2)
        grad_moments, grad_total = maximise_backward(grad_mu + grad_history[t], before[t + 1], norms[t], eps_mode)
        grad_z = x.mT @ grad_moments + grad_total + grad_out_z
        grad_s = z * (grad_z - (z * grad_z).sum(2, keepdim=True))
        grad_x += grad_moments @ z.mT + before[t] @ grad_s.mT
        grad_mu, grad_out_z = x @ grad_s, torch.zeros_like(grad_out_z)
    return grad_x.to(dtype), grad_mu.sum(0, keepdim=True) if bases.shape[0] == 1 else grad_mu
