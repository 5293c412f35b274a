"""segops.nn.DenseCRF: the dense CRF as a layer with parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import dense_crf, mean_field
from ..ops.dense_crf import _check_image
from ..ops.mean_field import ALGORITHMS, NORMALIZATIONS


def _keep(module: nn.Module, name: str, value: Tensor, learnt: bool) -> None:
    """As a parameter, or as a buffer of the same name, so that state dicts fit either way."""
    if learnt:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class DenseCRF(nn.Module):
    r"""The fully connected CRF as the last layer of a network, learnt with it.

    Zheng et al., *Conditional Random Fields as Recurrent Neural Networks*, 2015: the mean-field iterations are
    unrolled, and the kernels' weights and the compatibility of labels are parameters. With ``algorithm="exact"`` the
    widths of the kernels can be learnt too. See :func:`segops.dense_crf` for the model, the options and the
    conventions.

    Args:
        num_classes: L, the labels.
        iterations: mean-field updates; may be changed later. Default 5.
        spatial_sigma, spatial_weight, bilateral_sigma_xy, bilateral_sigma_rgb, bilateral_weight: initial values, as
            in :func:`segops.dense_crf`.
        in_channels: channels of the image. Default 3.
        normalization: ``"symmetric"`` (default), ``"before"``, ``"after"`` or ``"none"``.
        algorithm: ``"lattice"`` (default) or ``"exact"``.
        learn_weights: make the two weights parameters. Default ``True``.
        learn_compatibility: make the ``(L, L)`` energy between labels a parameter, Potts at first. Default ``True``.
        learn_sigmas: make the widths parameters; needs ``algorithm="exact"``. Default ``False``.
        return_logits: return the argument of the last softmax, as losses want it (default), or marginals.

    Shape:
        logits ``(N, L, H, W)`` floating point and image ``(N, C, H, W)`` uint8 or floating point to ``(N, L, H, W)``.

    Widths are kept as logarithms, so that they stay positive.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> crf = segops.nn.DenseCRF(num_classes=4, iterations=2)
        >>> logits, image = torch.randn(1, 4, 12, 16), torch.rand(1, 3, 12, 16)
        >>> loss = torch.nn.functional.cross_entropy(crf(logits, image), torch.zeros(1, 12, 16, dtype=torch.long))
        >>> loss.backward()
        >>> sorted(name for name, p in crf.named_parameters() if p.grad is not None)
        ['bilateral_weight', 'compatibility', 'spatial_weight']
    """

    spatial_weight: Tensor
    bilateral_weight: Tensor
    compatibility: Tensor
    log_spatial_sigma: Tensor
    log_bilateral_sigma_xy: Tensor
    log_bilateral_sigma_rgb: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        iterations: int = 5,
        spatial_sigma: float | Sequence[float] = 3.0,
        spatial_weight: float = 3.0,
        bilateral_sigma_xy: float | Sequence[float] = 80.0,
        bilateral_sigma_rgb: float | Sequence[float] = 13.0,
        bilateral_weight: float = 10.0,
        in_channels: int = 3,
        normalization: str = "symmetric",
        algorithm: str = "lattice",
        learn_weights: bool = True,
        learn_compatibility: bool = True,
        learn_sigmas: bool = False,
        return_logits: bool = True,
    ):
        super().__init__()
        self.num_classes = _checks.count("num_classes", num_classes)
        if self.num_classes == 0:
            raise ValueError("num_classes: expected at least 1, got 0")
        self.iterations = _checks.count("iterations", iterations)
        self.normalization = _checks.choice("normalization", normalization, NORMALIZATIONS)
        self.algorithm = _checks.choice("algorithm", algorithm, ALGORITHMS)
        if learn_sigmas and algorithm != "exact":
            raise ValueError(
                "learn_sigmas: expected algorithm='exact', because the lattice has no gradient of its widths"
            )
        self.learn_sigmas = learn_sigmas
        self.return_logits = return_logits
        _keep(self, "spatial_weight", torch.tensor(_checks.finite("spatial_weight", spatial_weight)), learn_weights)
        _keep(
            self, "bilateral_weight", torch.tensor(_checks.finite("bilateral_weight", bilateral_weight)), learn_weights
        )
        _keep(self, "compatibility", -torch.eye(self.num_classes), learn_compatibility)
        sigmas = {
            "spatial_sigma": _checks.positives("spatial_sigma", spatial_sigma, 2),
            "bilateral_sigma_xy": _checks.positives("bilateral_sigma_xy", bilateral_sigma_xy, 2),
            "bilateral_sigma_rgb": _checks.positives("bilateral_sigma_rgb", bilateral_sigma_rgb, in_channels),
        }
        self._fixed: dict[str, Any] = sigmas
        if learn_sigmas:
            for name, values in sigmas.items():
                _keep(self, f"log_{name}", torch.tensor(values).log(), True)

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Refine ``logits`` (N, L, H, W) by ``image`` (N, C, H, W)."""
        _checks.tensor("logits", logits, 4, "(N, L, H, W)")
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits: expected {self.num_classes} labels, got shape {_checks.shape(logits)}")
        options: dict[str, Any] = {
            "iterations": self.iterations,
            "compatibility": self.compatibility,
            "normalization": self.normalization,
            "algorithm": self.algorithm,
            "return_logits": self.return_logits,
        }
        if not self.learn_sigmas:
            options |= {"spatial_weight": self.spatial_weight, "bilateral_weight": self.bilateral_weight}
            return dense_crf(logits, image, **self._fixed, **options)
        spatial, bilateral = self._learnt_features(logits, image)
        weights = torch.stack([self.spatial_weight, self.bilateral_weight])
        return mean_field(logits.flatten(2), [spatial, bilateral], weights, **options).view(logits.shape)

    def _learnt_features(self, logits: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features in units of pixels and grey levels, divided by widths that have gradients."""
        _check_image(image, logits)
        unit = torch.ops.segops.dense_crf_features(image, [1.0, 1.0], [1.0] * image.shape[1])
        bilateral = torch.cat([self.log_bilateral_sigma_xy, self.log_bilateral_sigma_rgb])
        if len(bilateral) != unit.shape[1]:
            raise ValueError(f"image: expected {len(bilateral) - 2} channels, got shape {_checks.shape(image)}")
        return unit[:1, :2] / self.log_spatial_sigma.exp()[:, None], unit / bilateral.exp()[:, None]

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, iterations={self.iterations}, normalization={self.normalization!r}, "
            f"algorithm={self.algorithm!r}, learn_sigmas={self.learn_sigmas}"
        )
