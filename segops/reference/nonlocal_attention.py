"""Non-local attention by its definition (Wang et al., 2018, equation 1), the softmax weights in memory."""

from __future__ import annotations

from torch import Tensor

from .halves import wide


def nonlocal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """query (N, D, P), key (N, D, K), value (N, C, K) to out (N, C, P) and, of every query, log(sum(exp(energies))).

    Equations 2 and 3: f = exp(scale theta^T phi), normalised by its sum over the keys, a softmax.
    """
    energies = scale * wide(query).mT @ wide(key)  # (N, P, K)
    out = wide(value) @ energies.softmax(2).mT
    return out.to(value.dtype).contiguous(), energies.logsumexp(2).detach()  # for the backward pass only


def nonlocal_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of ``out``; ``out`` and ``lse`` are the results of the forward."""
    dtype = query.dtype
    grad, query, key, value, out = map(wide, (grad, query, key, value, out))
    weights = (scale * query.mT @ key - lse[..., None]).exp()
    mean = (grad * out).sum(1)[..., None]  # of the weights' gradients, which the softmax takes off
    grad_energies = weights * (grad.mT @ value - mean)
    grad_query = scale * key @ grad_energies.mT
    grad_key = scale * query @ grad_energies
    return tuple(x.to(dtype).contiguous() for x in (grad_query, grad_key, grad @ weights))  # type: ignore[return-value]
