"""segops.subdivide: PointRend's loop and its step's registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import subdivide as reference
from .point_sample import point_sample


def subdivide(
    coarse: Tensor,
    features: Tensor | Sequence[Tensor],
    point_head: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int = 2,
    num_points: int = 8192,
) -> Tensor:
    r"""Render a segmentation from coarse to fine: PointRend's inference.

    Each step doubles the map (bilinear, ``align_corners=False``), asks ``point_head`` again at the most uncertain cells
    and writes its answers there (Kirillov et al., *PointRend: Image Segmentation as Rendering*, 2020, section 3.1;
    detectron2's semantic variant). The head sees the features and the coarse logits at the cells' centres, the latter
    always of ``coarse`` itself, not of a map that it has refined. Doubling and margins are one pass, so a large map is
    written once and not read again; :func:`topk_uncertain_grid` says what is uncertain.

    Args:
        coarse: ``(N, C, H, W)`` logits, no dimension but N empty; float64, float32, bfloat16 or float16 (the map is
            kept in float32 until the end).
        features: a feature map ``(N, F, h, w)`` of any size, or a list of them, sampled and joined along F.
        point_head: ``(fine (N, F, P), coarse (N, C, P)) -> (N, C, P)``, for instance an ``nn.Module`` with
            ``eval()``; its floating-point answers are cast to the dtype of the map.
        steps: doublings. Default 2.
        num_points: cells refined in each step; more than there are means all of them, 0 none. Default 8192.

    Returns:
        ``(N, C, H 2^steps, W 2^steps)``, in the dtype of ``coarse`` (float32 inside autocast).

    Runs without gradients: training takes :func:`uncertain_points` and ``point_sample``.

    Raises:
        TypeError: for what is no dense floating-point tensor, no callable or no integer.
        ValueError: for shapes or devices that do not fit, or if the head's answer has another shape, device or kind
            of dtype than asked.

    Example:
        >>> import torch, segops
        >>> head = torch.nn.Conv1d(16 + 5, 5, 1)
        >>> segops.subdivide(
        ...     torch.randn(1, 5, 8, 8),
        ...     torch.randn(1, 16, 16, 16),
        ...     lambda fine, coarse: head(torch.cat([fine, coarse], 1)),
        ...     num_points=40,
        ... ).shape
        torch.Size([1, 5, 32, 32])
    """
    coarse = _checks.logit_map("coarse", coarse)
    maps = _feature_maps(features, coarse)
    if not callable(point_head):
        raise TypeError(f"point_head: expected a callable, got {type(point_head).__name__}")
    steps, num_points = _checks.count("steps", steps), _checks.count("num_points", num_points)
    with torch.no_grad():
        logits = _checks.widened(coarse)
        if steps == 0:
            logits = logits.clone(memory_format=torch.contiguous_format)
        for _ in range(steps):
            k = min(num_points, 4 * logits.shape[2] * logits.shape[3])
            logits, indices, points = _registry.call(torch.ops.segops.subdivide, logits, k)
            if k > 0:
                refined = point_head(point_sample(maps, points), point_sample(coarse, points))
                _check_answer(refined, logits, k)
                places = indices[:, None].expand(-1, logits.shape[1], -1)
                logits.flatten(2).scatter_(2, places, refined.to(logits.dtype))
        return _checks.narrowed(logits, coarse)


def _feature_maps(features: Tensor | Sequence[Tensor], coarse: Tensor) -> list[Tensor]:
    single = isinstance(features, Tensor)
    if not single and not (isinstance(features, (list, tuple)) and features):
        raise TypeError(f"features: expected a tensor (N, F, h, w) or a list of them, got {features!r}")
    maps = []
    for i, x in enumerate([features] if single else features):
        name = "features" if single else f"features[{i}]"
        x = _checks.floating(name, _checks.tensor(name, x, 4, "(N, F, h, w)"))
        _checks.same_device(name, x, "coarse", coarse)
        if x.shape[0] != coarse.shape[0]:
            raise ValueError(f"{name}: expected a batch of {coarse.shape[0]} like coarse, got shape {_checks.shape(x)}")
        maps.append(x)
    return maps


def _check_answer(refined: Tensor, logits: Tensor, k: int) -> None:
    n, channels = logits.shape[:2]
    wanted = f"point_head: expected floating-point logits ({n}, {channels}, {k}) on {logits.device}"
    if not isinstance(refined, Tensor):
        raise ValueError(f"{wanted}, got {type(refined).__name__}")
    if refined.shape != (n, channels, k) or not refined.is_floating_point() or refined.device != logits.device:
        raise ValueError(f"{wanted}, got {refined.dtype} {_checks.shape(refined)} on {refined.device}")


def _fake(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    n, channels, height, width = logits.shape
    return (
        logits.new_empty((n, channels, 2 * height, 2 * width)),
        logits.new_empty((n, k), dtype=torch.int64),
        logits.new_empty((n, k, 2)),
    )


_registry.register(
    "subdivide(Tensor logits, int k) -> (Tensor, Tensor, Tensor)",
    file="subdivide",
    reference=reference.subdivide,
    fake=_fake,
)
