"""segops.dense_crf: the image's features, then mean field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference.dense_crf import dense_crf_features as reference
from .mean_field import mean_field


def dense_crf(
    logits: Tensor,
    image: Tensor,
    *,
    iterations: int = 5,
    spatial_sigma: float | Sequence[float] = 3.0,
    spatial_weight: float | Tensor = 3.0,
    bilateral_sigma_xy: float | Sequence[float] = 80.0,
    bilateral_sigma_rgb: float | Sequence[float] = 13.0,
    bilateral_weight: float | Tensor = 10.0,
    compatibility: Tensor | None = None,
    normalization: str = "symmetric",
    algorithm: str = "lattice",
    return_logits: bool = False,
) -> Tensor:
    r"""Refine a segmentation with the fully connected CRF of its image.

    Two Gaussian kernels join every pair of pixels: a spatial one, and a bilateral one that sees position and colour
    (Kraehenbuehl and Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, 2011,
    equation 3). :func:`mean_field` does the inference and says more of its options. Same numbers as pydensecrf's
    ``DenseCRF2D`` to float32 rounding, with the defaults of its examples.

    Args:
        logits: ``(N, L, H, W)`` unnormalised log-probabilities; the unary energy is ``-log_softmax(logits)``. float64,
            float32, bfloat16 or float16 (computed in float32). ``-inf`` forbids a label.
        image: ``(N, C, H, W)`` with C >= 1 channels, uint8 or floating point. The sigmas of colour are in its units: an
            image in 0..1 wants ``bilateral_sigma_rgb=13 / 255``.
        iterations: mean-field updates. Default 5.
        spatial_sigma: standard deviation of the spatial kernel in pixels; a pair is (x, y). Default 3.
        spatial_weight: its weight, a number or a tensor with one element. Default 3.
        bilateral_sigma_xy: of position in the bilateral kernel, in pixels; a pair is (x, y). Default 80.
        bilateral_sigma_rgb: of colour, one for all channels or one each. Default 13.
        bilateral_weight: as ``spatial_weight``. Default 10.
        compatibility: ``None`` (Potts), a vector ``(L,)`` (diagonal energy, negative rewards), or a matrix ``(L, L)``.
        normalization: ``"symmetric"`` (default), ``"before"``, ``"after"`` or ``"none"``.
        algorithm: ``"lattice"`` (default; linear time) or ``"exact"`` (brute force, quadratic time, no approximation).
        return_logits: return the argument of the last softmax instead of marginals.

    Returns:
        Marginals (or logits) ``(N, L, H, W)``, in the dtype of ``logits`` (float32 inside autocast).

    Differentiable with respect to logits, weights and compatibility; with ``"exact"`` also to the image.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or values that do not fit, sigmas <= 0, NaN or infinite images or logits.
        MemoryError: if the machine has not the memory that the image needs.

    Example:
        >>> import torch, segops
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> segops.dense_crf(torch.randn(1, 5, 20, 30), image, iterations=2).shape
        torch.Size([1, 5, 20, 30])
    """
    _checks.floating("logits", _checks.tensor("logits", logits, 4, "(N, L, H, W)"))
    _check_image(image, logits)
    batch, labels, height, width = logits.shape
    channels = image.shape[1]
    spatial = _checks.positives("spatial_sigma", spatial_sigma, 2)
    bilateral = _checks.positives("bilateral_sigma_xy", bilateral_sigma_xy, 2)
    color = _checks.positives("bilateral_sigma_rgb", bilateral_sigma_rgb, channels)
    features = [
        torch.ops.segops.dense_crf_features(image[:1, :0], spatial, []),
        torch.ops.segops.dense_crf_features(image, bilateral, color),
    ]
    out = mean_field(
        logits.reshape(batch, labels, height * width),
        features,
        _pair(spatial_weight, bilateral_weight, logits),
        iterations=iterations,
        compatibility=compatibility,
        normalization=normalization,
        algorithm=algorithm,
        return_logits=return_logits,
    )
    return out.view(batch, labels, height, width)


def _check_image(image: Any, logits: Tensor) -> None:
    """An image that goes with logits (N, L, H, W)."""
    _checks.tensor("image", image, 4, "(N, C, H, W)")
    if image.dtype != torch.uint8:
        _checks.floating("image", image)
    _checks.same_device("image", image, "logits", logits)
    batch, _, height, width = logits.shape
    if image.shape[0] != batch or image.shape[1] < 1 or image.shape[2:] != logits.shape[2:]:
        raise ValueError(
            f"image: expected shape ({batch}, C, {height}, {width}) to go with logits, C at least 1, "
            f"got {_checks.shape(image)}"
        )
    if image.shape[1] + 2 > _checks.MAX_FEATURES:
        raise ValueError(f"image: expected at most {_checks.MAX_FEATURES - 2} channels, got {image.shape[1]}")


def _pair(spatial: float | Tensor, bilateral: float | Tensor, like: Tensor) -> Tensor | list[float]:
    """The two weights; a tensor keeps its gradient."""
    weights = {"spatial_weight": spatial, "bilateral_weight": bilateral}
    if not any(isinstance(w, Tensor) for w in weights.values()):
        return [_checks.finite(name, w) for name, w in weights.items()]
    for name, w in weights.items():
        if isinstance(w, Tensor) and w.numel() != 1:
            raise ValueError(f"{name}: expected a number or a tensor with one element, got shape {_checks.shape(w)}")
    dtype = _checks.widened(like).dtype
    return torch.stack([torch.as_tensor(w, dtype=dtype, device=like.device).reshape(()) for w in weights.values()])


def _fake(image: Tensor, sigma_xy: Sequence[float], sigma_color: Sequence[float]) -> Tensor:
    batch, channels, height, width = image.shape
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return image.new_empty(batch, 2 + channels, height * width, dtype=dtype)


def _setup_context(ctx, inputs, output) -> None:
    image, _, ctx.sigma_color = inputs
    ctx.shape, ctx.dtype = image.shape, image.dtype


def _backward(ctx, grad: Tensor):
    sigma = _checks.filled(ctx.sigma_color, grad.dtype, grad.device)
    return (grad[:, 2:] / sigma[:, None]).reshape(ctx.shape).to(ctx.dtype), None, None


_registry.register(
    "dense_crf_features(Tensor image, float[] sigma_xy, float[] sigma_color) -> Tensor",
    file="dense_crf",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0,),
)
