"""segops.mean_field: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import mean_field as reference

NORMALIZATIONS = ("symmetric", "before", "after", "none")
ALGORITHMS = ("lattice", "exact")


def mean_field(
    logits: Tensor,
    features: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    *,
    iterations: int = 5,
    compatibility: Tensor | None = None,
    normalization: str = "symmetric",
    algorithm: str = "lattice",
    return_logits: bool = False,
) -> Tensor:
    r"""Mean-field inference in a fully connected CRF with Gaussian pairwise terms, over any points and features.

    The general form of :func:`dense_crf`: 3-D volumes, point clouds, multispectral images. With the unary energy
    ``U = -log_softmax(logits)``, kernels ``k_m(i, j) = exp(-|f_i - f_j|^2 / 2)`` over feature map m and energies
    ``C_m``,

    .. math:: Q^0 = softmax(-U), \quad Q^{t+1} = softmax(-U - \sum_m w_m C_m [b_m K_m (a_m Q^t)])

    after Kraehenbuehl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, 2011,
    algorithm 1. The term ``j = i`` stays in the sum, as in the authors' code and pydensecrf.

    Args:
        logits: ``(N, L, P)`` unnormalised log-probabilities of L labels at P points; float64, float32, bfloat16 or
            float16 (computed in float32). ``-inf`` forbids a label.
        features: one or more ``(N, D, P)``, or ``(1, D, P)`` for the whole batch, in units of one standard deviation
            of its kernel; D from 1 to 24.
        weights: one weight for each feature map, numbers or a tensor ``(K,)``.
        iterations: updates; 0 returns the softmax. Default 5.
        compatibility: energy between labels. ``None`` is Potts, ``-1`` on the diagonal (the same as 1 off it). A vector
            ``(L,)`` is a diagonal, added as it is: a negative entry rewards agreement. ``(L, L)`` is a full matrix,
            row the label that receives; not symmetrised (pydensecrf does that). ``(K, L, L)`` has one for each kernel.
        normalization: with the norm ``n = K 1``: ``"symmetric"`` a = b = 1/sqrt(n) (default), ``"before"`` a = 1/n,
            ``"after"`` b = 1/n (CRF-as-RNN, MONAI), ``"none"``.
        algorithm: ``"lattice"`` filters by :func:`permutohedral_filter`, ``"exact"`` by :func:`gaussian_filter_exact`.
        return_logits: return the logarithm's argument of the last softmax, ``-U - ...``, for a loss to follow.

    Returns:
        Marginals ``(N, L, P)`` that sum to 1 over the labels, or logits, in the dtype of ``logits`` (float32 inside
        autocast).

    Differentiable through all iterations (Zheng et al., *Conditional Random Fields as Recurrent Neural Networks*, 2015)
    with respect to logits, weights and compatibility; with ``"exact"`` also to features.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or values that do not fit: NaN or +inf logits, a point whose labels are all
            ``-inf``, non-finite features.
        MemoryError: if the machine has not the memory that so many points and labels need.

    Example:
        >>> import torch, segops
        >>> logits, points = torch.randn(2, 4, 300), torch.randn(2, 3, 300)
        >>> q = segops.mean_field(logits, [points], [1.0], iterations=3)
        >>> bool(torch.allclose(q.sum(1), torch.ones(2, 300)))
        True
    """
    _checks.floating("logits", _checks.tensor("logits", logits, 3, "(N, L, P)"))
    if logits.shape[1] == 0:
        raise ValueError(f"logits: expected at least one label, got shape {_checks.shape(logits)}")
    if isinstance(features, Tensor) or not isinstance(features, Sequence):
        raise TypeError(f"features: expected a list of tensors (N or 1, D, P), got {type(features).__name__}")
    batch, _, points = logits.shape
    wide = _checks.widened(logits)
    maps = [
        _checks.features(f"features[{k}]", f, batch, points, logits, "logits").to(wide.dtype)
        for k, f in enumerate(features)
    ]
    energy = _energy(wide, _weights(weights, wide, len(maps)), compatibility)
    iterations = _checks.count("iterations", iterations)
    _checks.choice("normalization", normalization, NORMALIZATIONS)
    if _checks.choice("algorithm", algorithm, ALGORITHMS) == "exact":
        out = _exact(wide, maps, energy, iterations, normalization, return_logits)
    else:
        maps = [f.detach() for f in maps]
        options = iterations, normalization, bool(return_logits)
        out = _registry.call(torch.ops.segops.mean_field, wide, maps, energy, *options)
    return _checks.narrowed(out, logits)


def _weights(weights: Sequence[float] | Tensor, like: Tensor, kernels: int) -> Tensor:
    if not isinstance(weights, Tensor):
        if isinstance(weights, str) or not isinstance(weights, Sequence):
            raise TypeError(f"weights: expected numbers or a tensor (K,), got {type(weights).__name__}")
        numbers = [_checks.finite(f"weights[{k}]", w) for k, w in enumerate(weights)]
        weights = _checks.filled(numbers, like.dtype, like.device)
    _checks.floating("weights", _checks.tensor("weights", weights, 1, "(K,)"))
    _checks.same_device("weights", weights, "logits", like)
    if len(weights) != kernels:
        raise ValueError(f"weights: expected {kernels}, one for each of the features, got {len(weights)}")
    return weights.to(like.dtype)


def _energy(like: Tensor, weights: Tensor, compatibility: Tensor | None) -> Tensor:
    """Weights times compatibility: (K, L) diagonals or (K, L, L) matrices."""
    labels = like.shape[1]
    if compatibility is None:
        return -weights[:, None].expand(-1, labels).contiguous()
    shapes = (labels,), (labels, labels), (len(weights), labels, labels)
    compatibility = _check_compatibility(compatibility, like, *shapes)
    return weights.view(-1, *[1] * min(compatibility.dim(), 2)) * compatibility.to(like.dtype)


def _check_compatibility(compatibility: Any, like: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """A floating-point tensor of one of these shapes."""
    if not isinstance(compatibility, Tensor):
        raise TypeError(f"compatibility: expected None or a tensor, got {type(compatibility).__name__}")
    _checks.floating("compatibility", compatibility)
    _checks.same_device("compatibility", compatibility, "logits", like)
    if tuple(compatibility.shape) not in shapes:
        allowed = f"{', '.join(map(str, shapes[:-1]))} or {shapes[-1]}"
        raise ValueError(
            f"compatibility: expected shape {allowed} for {like.shape[1]} labels, got {_checks.shape(compatibility)}"
        )
    return compatibility


def _exact(
    logits: Tensor, features: list[Tensor], energy: Tensor, iterations: int, normalization: str, return_logits: bool
) -> Tensor:
    """The reference's update around the exact filter, which is an operator with gradients of its own."""
    filters = []
    for f in features:

        def filter(values: Tensor, f: Tensor = f) -> Tensor:
            return _registry.call(torch.ops.segops.gaussian_filter_exact, values, f)

        ones = logits.new_ones(f.shape[0], 1, f.shape[2])
        norm = filter(ones) if normalization != "none" else ones
        filters.append(reference.normalized(filter, norm, normalization))
    return reference.mean_field_with(filters, logits, energy, iterations, return_logits)


def _fake(logits, features, compatibility, iterations, normalization, return_logits) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    logits, features, compatibility, *ctx.options = inputs
    ctx.save_for_backward(logits, compatibility, *features)


def _backward(ctx, grad: Tensor):
    logits, compatibility, *features = ctx.saved_tensors
    grad_logits, grad_compatibility = torch.ops.segops.mean_field_backward(
        grad, logits, features, compatibility, *ctx.options
    )
    return grad_logits, [None] * len(features), grad_compatibility, *[None] * len(ctx.options)


def _fake_backward(
    grad, logits, features, compatibility, iterations, normalization, return_logits
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(logits, memory_format=torch.contiguous_format),
        torch.empty_like(compatibility, memory_format=torch.contiguous_format),
    )


_OPTIONS = "Tensor compatibility, int iterations, str normalization, bool return_logits"
_registry.register(
    f"mean_field(Tensor logits, Tensor[] features, {_OPTIONS}) -> Tensor",
    file="mean_field",
    reference=reference.mean_field,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    f"mean_field_backward(Tensor grad, Tensor logits, Tensor[] features, {_OPTIONS}) -> (Tensor, Tensor)",
    file="mean_field",
    reference=reference.mean_field_backward,
    fake=_fake_backward,
)
