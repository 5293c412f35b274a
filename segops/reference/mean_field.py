"""Mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun 2011, algorithm 1), step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .permutohedral_filter import build_lattice

EPS = 1e-20  # as the authors' code has it: keeps the norm of an isolated point finite

Filter = Callable[[Tensor], Tensor]  # (N, V, P) to (N, V, P)


def lattice_filter(features: Tensor) -> tuple[Filter, Filter]:
    """The permutohedral filter of features (N or 1, D, P) and its adjoint, their lattices built once."""
    lattices = [build_lattice(f) for f in features]

    def filter(values: Tensor, reverse: bool = False) -> Tensor:
        return torch.stack([lattices[n % len(lattices)].filter(v, reverse) for n, v in enumerate(values)])

    return filter, lambda values: filter(values, reverse=True)


def normalized(filter: Filter, norm: Tensor, normalization: str) -> Filter:
    """Wrap a filter by its norm, the filtered ones (N or 1, 1, P)."""
    norm = norm + EPS
    if normalization == "symmetric":
        scale = norm.rsqrt()
        return lambda values: scale * filter(scale * values)
    if normalization == "before":
        return lambda values: filter(values / norm)
    if normalization == "after":
        return lambda values: filter(values) / norm
    return filter


ADJOINT = {"symmetric": "symmetric", "before": "after", "after": "before", "none": "none"}


def normalized_lattice_filters(features: Sequence[Tensor], normalization: str) -> list[tuple[Filter, Filter]]:
    """For each feature map, the normalised filter and its adjoint."""
    pairs = []
    for f in features:
        filter, adjoint = lattice_filter(f)
        norm = filter(f.new_ones(f.shape[0], 1, f.shape[2]))
        pairs.append((normalized(filter, norm, normalization), normalized(adjoint, norm, ADJOINT[normalization])))
    return pairs


def coupled(energy: Tensor, message: Tensor) -> Tensor:
    """C x: a diagonal (L,) or a matrix (L, L) applied to (N, L, P)."""
    return energy[:, None] * message if energy.dim() == 1 else energy @ message


def mean_field_with(
    filters: Sequence[Filter], logits: Tensor, compatibility: Tensor, iterations: int, return_logits: bool = False
) -> Tensor:
    """The update itself, for any filters: ``logits`` (N, L, P), ``compatibility`` (K, L) diagonals or (K, L, L)."""
    if not torch.isfinite(logits.amax(1)).all():
        raise ValueError(
            "logits: expected finite values (or -inf for labels that are impossible), got NaN, +inf or a point "
            "without a possible label"
        )
    minus_unary = torch.log_softmax(logits, 1)
    state = minus_unary
    for _ in range(iterations):
        marginals = torch.softmax(state, 1)
        messages = [coupled(c, filter(marginals)) for c, filter in zip(compatibility, filters, strict=True)]
        state = minus_unary - sum(messages)
    return state if return_logits else torch.softmax(state, 1)


def mean_field(
    logits: Tensor,
    features: Sequence[Tensor],
    compatibility: Tensor,
    iterations: int,
    normalization: str,
    return_logits: bool,
) -> Tensor:
    """On the permutohedral lattice, as the operator segops::mean_field."""
    if logits.numel() == 0:
        return torch.zeros_like(logits)
    filters = [filter for filter, _ in normalized_lattice_filters(features, normalization)]
    return mean_field_with(filters, logits, compatibility, iterations, return_logits)


def softmax_backward(grad: Tensor, marginals: Tensor) -> Tensor:
    """Gradient of the softmax's argument."""
    return marginals * (grad - (grad * marginals).sum(1, keepdim=True))


def mean_field_backward(
    grad: Tensor,
    logits: Tensor,
    features: Sequence[Tensor],
    compatibility: Tensor,
    iterations: int,
    normalization: str,
    return_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and compatibility, back through all iterations (Zheng et al. 2015)."""
    grad_compatibility = torch.zeros_like(compatibility)
    if logits.numel() == 0:
        return torch.zeros_like(logits), grad_compatibility
    pairs = normalized_lattice_filters(features, normalization)
    filters = [filter for filter, _ in pairs]
    marginals = [mean_field_with(filters, logits, compatibility, t, return_logits=False) for t in range(iterations + 1)]
    grad_logits = torch.zeros_like(logits)
    grad_state = grad if return_logits else softmax_backward(grad, marginals[-1])
    for before in reversed(marginals[:-1]):
        grad_logits += grad_state
        grad_marginals = torch.zeros_like(logits)
        for k, (filter, adjoint) in enumerate(pairs):
            outer = -grad_state @ filter(before).mT  # (N, L, L), of every pair of labels
            grad_compatibility[k] += (outer.diagonal(dim1=1, dim2=2) if compatibility.dim() == 2 else outer).sum(0)
            grad_marginals -= adjoint(
                coupled(compatibility[k].mT if compatibility.dim() == 3 else compatibility[k], grad_state)
            )
        grad_state = softmax_backward(grad_marginals, before)
    grad_logits += grad_state
    if return_logits:  # the log_softmax at the start, which a softmax at the end does not see
        grad_logits -= marginals[0] * grad_logits.sum(1, keepdim=True)
    return grad_logits, grad_compatibility
