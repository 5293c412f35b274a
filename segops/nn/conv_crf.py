"""segops.nn.ConvCRF: the convolutional CRF as a layer with parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import conv_crf
from ..ops.conv_crf import _check_window
from ..ops.mean_field import NORMALIZATIONS
from .dense_crf import _keep


class ConvCRF(nn.Module):
    r"""A CRF whose kernels end after a few pixels, as the last layer of a network and learnt with it.

    Teichmann and Cipolla, *Convolutional CRFs for Semantic Segmentation*, 2018; see :func:`segops.conv_crf` for the
    model, the options and the conventions.

    Args:
        num_classes: L, the labels.
        filter_size, blur, iterations, normalization: as in :func:`segops.conv_crf`. ``iterations`` may be changed
            later.
        unary_weight, spatial_sigma, spatial_weight, bilateral_sigma_xy, bilateral_sigma_rgb, bilateral_weight: initial
            values, as in :func:`segops.conv_crf`. The unary weight is one for each label.
        in_channels: channels of the image. Default 3.
        learn_weights: make the three weights parameters. Default ``True``.
        learn_compatibility: make the ``(L, L)`` energy between labels a parameter, Potts at first. Default ``True``.
        learn_sigmas: make the widths parameters. Default ``True``.
        return_logits: return the argument of the last softmax, as losses want it (default), or marginals.

    Shape:
        logits ``(N, L, H, W)`` floating point and image ``(N, C, H, W)`` uint8 or floating point to ``(N, L, H, W)``.

    Widths are kept as logarithms, so that they stay positive.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> crf = segops.nn.ConvCRF(num_classes=4, filter_size=5, blur=1, iterations=2)
        >>> logits, image = torch.randn(1, 4, 12, 16), torch.rand(1, 3, 12, 16)
        >>> loss = torch.nn.functional.cross_entropy(crf(logits, image), torch.zeros(1, 12, 16, dtype=torch.long))
        >>> loss.backward()
        >>> len([p for p in crf.parameters() if p.grad is not None])
        6
    """

    unary_weight: Tensor
    spatial_weight: Tensor
    bilateral_weight: Tensor
    compatibility: Tensor
    log_spatial_sigma: Tensor
    log_bilateral_sigma_xy: Tensor | None
    log_bilateral_sigma_rgb: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        filter_size: int = 11,
        blur: int = 4,
        iterations: int = 5,
        unary_weight: float = 0.8,
        spatial_sigma: float | Sequence[float] = 3.0,
        spatial_weight: float = 0.6,
        bilateral_sigma_xy: float | Sequence[float] | None = None,
        bilateral_sigma_rgb: float | Sequence[float] = 13.0,
        bilateral_weight: float = 2.0,
        in_channels: int = 3,
        normalization: str = "none",
        learn_weights: bool = True,
        learn_compatibility: bool = True,
        learn_sigmas: bool = True,
        return_logits: bool = True,
    ):
        super().__init__()
        self.num_classes = _checks.count("num_classes", num_classes)
        if self.num_classes == 0:
            raise ValueError("num_classes: expected at least 1, got 0")
        _check_window(filter_size, blur)
        self.filter_size, self.blur = filter_size, blur
        self.iterations = _checks.count("iterations", iterations)
        self.normalization = _checks.choice("normalization", normalization, NORMALIZATIONS)
        self.return_logits = return_logits
        for name, weight in (("spatial_weight", spatial_weight), ("bilateral_weight", bilateral_weight)):
            _keep(self, name, torch.tensor(_checks.finite(name, weight)), learn_weights)
        unary = torch.full((self.num_classes,), _checks.finite("unary_weight", unary_weight))
        _keep(self, "unary_weight", unary, learn_weights)
        _keep(self, "compatibility", -torch.eye(self.num_classes), learn_compatibility)
        self._keep_sigmas("spatial_sigma", spatial_sigma, 2, learn_sigmas)
        self._keep_sigmas("bilateral_sigma_rgb", bilateral_sigma_rgb, in_channels, learn_sigmas)
        if bilateral_sigma_xy is None:
            self.register_buffer("log_bilateral_sigma_xy", None)
        else:
            self._keep_sigmas("bilateral_sigma_xy", bilateral_sigma_xy, 2, learn_sigmas)

    def _keep_sigmas(self, name: str, value: float | Sequence[float], count: int, learnt: bool) -> None:
        _keep(self, f"log_{name}", torch.tensor(_checks.positives(name, value, count)).log(), learnt)

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Refine ``logits`` (N, L, H, W) by ``image`` (N, C, H, W)."""
        _checks.tensor("logits", logits, 4, "(N, L, H, W)")
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits: expected {self.num_classes} labels, got shape {_checks.shape(logits)}")
        return conv_crf(
            logits,
            image,
            filter_size=self.filter_size,
            blur=self.blur,
            iterations=self.iterations,
            unary_weight=self.unary_weight,
            spatial_sigma=self.log_spatial_sigma.exp(),
            spatial_weight=self.spatial_weight,
            bilateral_sigma_xy=None if self.log_bilateral_sigma_xy is None else self.log_bilateral_sigma_xy.exp(),
            bilateral_sigma_rgb=self.log_bilateral_sigma_rgb.exp(),
            bilateral_weight=self.bilateral_weight,
            compatibility=self.compatibility,
            normalization=self.normalization,
            return_logits=self.return_logits,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, filter_size={self.filter_size}, blur={self.blur}, iterations={self.iterations}, "
            f"normalization={self.normalization!r}"
        )
