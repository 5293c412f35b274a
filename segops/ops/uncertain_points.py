"""segops.uncertain_points: checks, draws and registration; the work is in the layers that share its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import uncertain_points as reference


def uncertain_points(
    logits: Tensor,
    num_points: int,
    *,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Points for PointRend's training: most of them where the logits are uncertain, the rest anywhere.

    Draws ``int(num_points * oversample_ratio)`` uniform points in each image, samples the logits there (bilinear, zeros
    outside, ``align_corners=False``), keeps the ``int(importance_sample_ratio * num_points)`` whose sampled logits have
    the smallest margin, as :func:`topk_uncertain_grid` defines it, and appends fresh uniform points up to
    ``num_points`` (Kirillov et al., *PointRend: Image Segmentation as Rendering*, 2020, section 3.2; detectron2's
    ``get_uncertain_point_coords_with_randomness``). Sampling, margins and selection are fused: sampled logits are
    never written.

    Args:
        logits: ``(N, C, H, W)``, no dimension but N empty; float64, float32, bfloat16 or float16. channels_last is read
            as it is.
        num_points: points for each image.
        oversample_ratio: candidates for each point, at least 1. Default 3.
        importance_sample_ratio: share of the points that are chosen, 0 to 1. Default 0.75.
        generator: of the two draws, candidates first; on the device of ``logits``. Default: torch's own.

    Returns:
        ``(N, num_points, 2)`` as (x, y) in [0, 1] units of width and height: the chosen ones, most uncertain first,
        then the random ones; float64 for float64 logits, else float32.

    Not differentiable: no gradient flows into ``logits``. A candidate with a NaN among its sampled logits, or whose two
    largest are infinities of the same sign, counts as least uncertain.

    Raises:
        TypeError: for what is no dense floating-point tensor, no number or no generator.
        ValueError: for shapes, devices or ratios that do not fit.

    Example:
        >>> import torch, segops
        >>> segops.uncertain_points(torch.randn(2, 19, 64, 128), 100).shape
        torch.Size([2, 100, 2])
    """
    logits = _checks.widened(_checks.logit_map("logits", logits)).detach()
    num_points = _checks.count("num_points", num_points)
    if _checks.finite("oversample_ratio", oversample_ratio) < 1:
        raise ValueError(f"oversample_ratio: expected at least 1, got {oversample_ratio}")
    if not 0 <= _checks.finite("importance_sample_ratio", importance_sample_ratio) <= 1:
        raise ValueError(f"importance_sample_ratio: expected 0 to 1, got {importance_sample_ratio}")
    if generator is not None:
        _check_generator(generator, logits)
    important = int(importance_sample_ratio * num_points)

    # With a generator, be it None, torch.rand takes no symbolic shapes.
    own: dict[str, Any] = {} if generator is None else {"generator": generator}

    def draw(count: int) -> Tensor:
        return torch.rand(logits.shape[0], count, 2, dtype=logits.dtype, device=logits.device, **own)

    candidates, others = draw(int(num_points * oversample_ratio)), draw(num_points - important)
    return _registry.call(torch.ops.segops.uncertain_points, logits, candidates, others, important)


def _check_generator(generator: torch.Generator, logits: Tensor) -> None:
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != logits.device.type:
        raise ValueError(f"generator: expected device {logits.device} like logits, got {generator.device}")


def _fake(logits: Tensor, candidates: Tensor, others: Tensor, important: int) -> Tensor:
    return candidates.new_empty((candidates.shape[0], important + others.shape[1], 2))


_registry.register(
    "uncertain_points(Tensor logits, Tensor candidates, Tensor others, int important) -> Tensor",
    file="uncertain_points",
    reference=reference.uncertain_points,
    fake=_fake,
    batch=(0, 1, 2),
)
