"""Non-local attention in its concatenation form: Wang et al., 2018, section 3.2, equation 6, all weights in memory.

There f(x_i, x_j) = relu(w [theta(x_i), phi(x_j)]), and w splits into the two halves that made the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nonlocal_concatenation(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    """query_score (N, Q), key_score (N, K), value (N, C, K) to (N, C, Q): equation 1 with C(x) = K."""
    weights = torch.relu(query_score[:, :, None] + key_score[:, None, :])
    return value @ weights.mT / key_score.shape[1]


def nonlocal_concatenation_backward(
    grad: Tensor, query_score: Tensor, key_score: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query_score, key_score and value; relu has none at 0."""
    weights = torch.relu(query_score[:, :, None] + key_score[:, None, :])
    grad_scores = (grad.mT @ value) * (weights > 0) / key_score.shape[1]
    return grad_scores.sum(2), grad_scores.sum(1), grad @ weights / key_score.shape[1]
