"""segops.permutohedral_filter: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference.permutohedral_filter import permutohedral_filter as reference


def permutohedral_filter(values: Tensor, features: Tensor, *, reverse: bool = False) -> Tensor:
    r"""High-dimensional Gaussian filter on the permutohedral lattice, in time linear in the number of points.

    Approximates ``out[n, :, i] = sum_j exp(-|f_i - f_j|^2 / 2) * values[n, :, j]`` (the term ``i = j`` included, no
    division by the norm) by splatting onto the vertices of a lattice, blurring there, and slicing back
    (Adams, Baek and Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*, Eurographics 2010).

    The convention is that of Kraehenbuehl and Koltun's code (2011), which pydensecrf wraps: blur (1/2, 1, 1/2) along
    the axes 0..D, result times ``1 / (1 + 2**-D)``, and a vertex exists only if a point touches it. The last makes the
    approximation poor where points are sparse; compare with :func:`gaussian_filter_exact`.

    Args:
        values: ``(N, V, P)``, V channels at P points; float64, float32, bfloat16 or float16 (summed in float32).
        features: ``(N, D, P)`` or ``(1, D, P)`` for the whole batch, in units of one standard deviation; D from 1 to
            24.
        reverse: blur along the axes D..0: the adjoint of the filter. Default ``False``.

    Returns:
        ``(N, V, P)``, contiguous, in the dtype of ``values`` (float32 inside autocast).

    Differentiable with respect to ``values``, any number of times: the gradient is the filter with ``reverse`` turned
    over. ``features`` get no gradient, because the lattice is piecewise constant in them; use the exact filter.

    Raises:
        TypeError: for what is no dense floating-point tensor.
        ValueError: for shapes or devices that do not fit, NaN or infinite features, or features that span more lattice
            cells than keys of 128 bits count (64 bits in the GPU kernels).

    Example:
        >>> import torch, segops
        >>> values, features = torch.rand(1, 3, 500), torch.randn(1, 2, 500)
        >>> segops.permutohedral_filter(values, features).shape
        torch.Size([1, 3, 500])
    """
    _checks.floating("values", _checks.tensor("values", values, 3, "(N, V, P)"))
    features = _checks.features("features", features, values.shape[0], values.shape[2], values, "values")
    wide = _checks.widened(values)
    out = _registry.call(torch.ops.segops.permutohedral_filter, wide, features.detach().to(wide.dtype), bool(reverse))
    return _checks.narrowed(out, values)


def _fake(values: Tensor, features: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    _, features, ctx.reverse = inputs
    ctx.save_for_backward(features)


def _backward(ctx, grad: Tensor):
    (features,) = ctx.saved_tensors
    return torch.ops.segops.permutohedral_filter(grad, features, not ctx.reverse), None, None


_registry.register(
    "permutohedral_filter(Tensor values, Tensor features, bool reverse) -> Tensor",
    file="permutohedral_filter",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
