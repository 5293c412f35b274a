"""The Gaussian filter over arbitrary features by brute force: the definition, P x P matrix and all."""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_matrix(features: Tensor) -> Tensor:
    """features (N, D, P) to exp(-|f_i - f_j|^2 / 2), (N, P, P): symmetric, 1 on its diagonal."""
    if not torch.isfinite(features).all():
        raise ValueError("features: expected finite values, got NaN or inf")
    difference = features[:, :, :, None] - features[:, :, None, :]
    return torch.exp(-0.5 * difference.square().sum(1))


def gaussian_filter_exact(values: Tensor, features: Tensor) -> Tensor:
    """values (N, V, P), features (N or 1, D, P): sum over j of k_ij values[:, :, j]."""
    return values @ kernel_matrix(features)


def gaussian_filter_exact_backward(grad: Tensor, values: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of values and features: d k_ij / d f_i = k_ij (f_j - f_i)."""
    kernel = kernel_matrix(features)
    product = grad.mT @ values
    pull = kernel * (product + product.mT)  # each pair pulls its two points together, (N, P, P)
    pull.diagonal(dim1=1, dim2=2).zero_()  # a point does not pull itself: it would only drown the others in rounding
    grad_features = features @ pull - features * pull.sum(1, keepdim=True)
    return grad @ kernel, grad_features.sum(0, keepdim=True) if features.shape[0] == 1 else grad_features
