"""segops.gaussian_filter_exact: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import gaussian_filter_exact as reference


def gaussian_filter_exact(values: Tensor, features: Tensor) -> Tensor:
    r"""High-dimensional Gaussian filter by brute force, without the P x P matrix in memory.

    ``out[n, :, i] = sum_j exp(-|f_i - f_j|^2 / 2) * values[n, :, j]``, the term ``i = j`` included: equation 2 of
    Kraehenbuehl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, 2011, as it
    stands. Distances, exponentials and products are fused tile by tile, the shape of computation of attention with a
    Gaussian kernel: P^2 (D + V) multiply-adds and P^2 exponentials, memory linear in P. Pairs of tiles so far apart
    that every exponential is 0 in the dtype are skipped. It is the oracle of :func:`permutohedral_filter`.

    Args:
        values: ``(N, V, P)``, V channels at P points; float64, float32, bfloat16 or float16 (summed in float32).
        features: ``(N, D, P)`` or ``(1, D, P)`` for the whole batch, in units of one standard deviation; D from 1 to
            24.

    Returns:
        ``(N, V, P)``, contiguous, in the dtype of ``values`` (float32 inside autocast).

    Differentiable once with respect to ``values`` and ``features``.

    Raises:
        TypeError: for what is no dense floating-point tensor.
        ValueError: for shapes or devices that do not fit, or NaN or infinite features.

    Example:
        >>> import torch, segops
        >>> values, features = torch.rand(1, 3, 500), torch.randn(1, 2, 500, requires_grad=True)
        >>> segops.gaussian_filter_exact(values, features).sum().backward()
        >>> features.grad.shape
        torch.Size([1, 2, 500])
    """
    _checks.floating("values", _checks.tensor("values", values, 3, "(N, V, P)"))
    features = _checks.features("features", features, values.shape[0], values.shape[2], values, "values")
    wide = _checks.widened(values)
    out = _registry.call(torch.ops.segops.gaussian_filter_exact, wide, features.to(wide.dtype))
    return _checks.narrowed(out, values)


def _fake(values: Tensor, features: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    values, features = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:  # half the work: the kernel is symmetric, so the filter is its own adjoint
        return torch.ops.segops.gaussian_filter_exact(grad, features), None
    return torch.ops.segops.gaussian_filter_exact_backward(grad, values, features)


def _fake_backward(grad: Tensor, values: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return _fake(values, features), torch.empty_like(features, memory_format=torch.contiguous_format)


_registry.register(
    "gaussian_filter_exact(Tensor values, Tensor features) -> Tensor",
    file="gaussian_filter_exact",
    reference=reference.gaussian_filter_exact,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    "gaussian_filter_exact_backward(Tensor grad, Tensor values, Tensor features) -> (Tensor, Tensor)",
    file="gaussian_filter_exact",
    reference=reference.gaussian_filter_exact_backward,
    fake=_fake_backward,
)
