"""segops.lovasz_grad: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference.lovasz_grad import lovasz_grad as reference


def lovasz_grad(sorted_foreground: Tensor) -> Tensor:
    r"""Gradient of the Lovasz extension of the Jaccard loss, by errors that have been sorted.

    Algorithm 1 of Berman, Rannen Triki and Blaschko, *The Lovasz-Softmax Loss*, CVPR 2018: how much the Jaccard loss
    ``1 - IoU`` grows when the element with the next smaller error is counted as wrong too. With G foreground elements
    in all, and f foreground and b background elements before it, an element's step is

    .. math:: \frac{1}{G + b} \text{ (foreground)}, \quad \frac{G - f}{(G + b)(G + b + 1)} \text{ (background)}

    and, where there is no foreground, 1 for the first element and 0 for all others. The published code subtracts
    neighbouring values of the Jaccard loss instead; in float32 that leaves most steps of a large image exactly 0.

    Args:
        sorted_foreground: ``(..., P)`` zeros and ones along the last dimension, 1 where the element is foreground, the
            largest error first; floating point, integer or bool.

    Returns:
        ``(..., P)``, contiguous, in the dtype of ``sorted_foreground`` where that is floating point (computed in
        float32 at least), else float32. Each row of length > 0 sums to 1.

    Not differentiable: the steps are constant in the errors.

    Raises:
        TypeError: for what is no dense tensor of real numbers.
        ValueError: for a tensor without dimensions, or other values than 0 and 1 (on CUDA a device-side assertion,
            so that the host need not wait).

    Example:
        >>> import torch, segops
        >>> segops.lovasz_grad(torch.tensor([1, 0, 1]))
        tensor([0.5000, 0.1667, 0.3333])
    """
    if not isinstance(sorted_foreground, Tensor):
        raise TypeError(f"sorted_foreground: expected a tensor (..., P), got {type(sorted_foreground).__name__}")
    if sorted_foreground.dim() == 0:
        raise ValueError("sorted_foreground: expected shape (..., P), got a tensor without dimensions")
    x = _checks.tensor("sorted_foreground", sorted_foreground, sorted_foreground.dim(), "(..., P)").detach()
    if x.is_complex():
        raise TypeError(f"sorted_foreground: expected real numbers, got {x.dtype}")
    if not x.is_floating_point():
        x = x.float()
    rows = _checks.widened(x).reshape(x.shape[:-1].numel(), x.shape[-1])
    return _checks.narrowed(_registry.call(torch.ops.segops.lovasz_grad, rows), x).view(x.shape)


def _fake(sorted_foreground: Tensor) -> Tensor:
    return torch.empty_like(sorted_foreground, memory_format=torch.contiguous_format)


_registry.register(
    "lovasz_grad(Tensor sorted_foreground) -> Tensor",
    file="lovasz_grad",
    reference=reference,
    fake=_fake,
    batch=(0,),
)
