"""segops.topk_uncertain_grid: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import topk_uncertain_grid as reference


def topk_uncertain_grid(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""The k most uncertain cells of a map of logits: where PointRend looks again at inference.

    A cell is the more uncertain, the smaller the margin ``top1 - top2`` between its two largest logits, or ``|logit|``
    where there is one channel, the logit of a mask (Kirillov et al., *PointRend: Image Segmentation as Rendering*,
    2020, section 3.1; detectron2's ``calculate_uncertainty`` and ``get_uncertain_point_coords_on_grid``). One pass over
    the logits, which are neither sorted nor copied; then a selection.

    Args:
        logits: ``(N, C, H, W)``, no dimension but N empty; float64, float32, bfloat16 or float16.
        k: number of cells; more than ``H W`` means all of them.

    Returns:
        ``indices``, ``(N, min(k, H W))`` int64, flat and row-major, the most uncertain first, ties by the lower index
        (torch.topk leaves ties unspecified); and ``points``, ``(N, min(k, H W), 2)``, the centres of these cells as
        (x, y) in units of width and height, ``((x + 0.5) / W, (y + 0.5) / H)``, float64 for float64 logits, else
        float32.

    Not differentiable. A cell with a NaN logit, or whose two largest are infinities of the same sign, counts as least
    uncertain.

    Raises:
        TypeError: for what is no dense floating-point tensor, or no integer.
        ValueError: for shapes or a k that do not fit.

    Example:
        >>> import torch, segops
        >>> logits = torch.tensor([[3.0, 0.2, -1.0], [-0.1, 4.0, 2.0]]).view(1, 1, 2, 3)
        >>> segops.topk_uncertain_grid(logits, 2)[0]
        tensor([[3, 1]])
    """
    logits = _checks.widened(_checks.logit_map("logits", logits)).detach()
    k = min(_checks.count("k", k), logits.shape[2] * logits.shape[3])
    return _registry.call(torch.ops.segops.topk_uncertain_grid, logits, k)


def _fake(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n = logits.shape[0]
    return logits.new_empty((n, k), dtype=torch.int64), logits.new_empty((n, k, 2))


_registry.register(
    "topk_uncertain_grid(Tensor logits, int k) -> (Tensor, Tensor)",
    file="topk_uncertain_grid",
    reference=reference.topk_uncertain_grid,
    fake=_fake,
)
