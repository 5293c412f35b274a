"""segops.upsample_argmax: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import upsample_argmax as reference


def upsample_argmax(
    logits: Tensor, size: int | Sequence[int], *, align_corners: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Labels at full size from logits of lower resolution, which are never up-sampled in memory.

    The same as ``interpolate(logits, size, mode="bilinear").argmax(1)``, the end of nearly every segmentation network.
    Between four cells a class whose largest logit is below another's least can't win; on CPUs only the others are
    interpolated.

    Bilinear up-sampling inside the network is that of Long, Shelhamer and Darrell (FCN, CVPR 2015).

    Args:
        logits: ``(N, C, h, w)``; float64, float32, bfloat16 or float16 (compared in float32).
        size: (H, W), or one number for both; any size, also smaller than h and w (as in torch, without antialiasing).
        align_corners: as in ``torch.nn.functional.interpolate``. Default ``False``.
        dtype: of the labels, ``torch.uint8`` (for at most 256 classes) or ``torch.int64``. Default: uint8 if the
            classes fit, an eighth of the memory; else int64.

    Returns:
        ``(N, H, W)`` labels. Of equal logits the lowest class wins, and NaN counts as the largest, as in
        ``torch.argmax``; logits that differ by rounding alone may be ordered differently than by two steps of torch.

    Has no gradient.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes or a size that do not fit, or uint8 for more than 256 classes.

    Example:
        >>> import torch, segops
        >>> labels = segops.upsample_argmax(torch.randn(1, 19, 16, 32), (128, 256))
        >>> labels.shape, labels.dtype
        (torch.Size([1, 128, 256]), torch.uint8)
    """
    _checks.logit_map("logits", logits)
    height, width = _checks.pair("size", size, 1)
    if dtype is not None and dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"dtype: expected torch.uint8 or torch.int64, got {dtype}")
    if dtype == torch.uint8 and logits.shape[1] > 256:
        raise ValueError(f"dtype: expected torch.int64 for more than 256 classes, got uint8 for {logits.shape[1]}")
    narrow = logits.shape[1] <= 256 if dtype is None else dtype == torch.uint8
    wide = _checks.widened(logits.detach())
    return _registry.call(torch.ops.segops.upsample_argmax, wide, height, width, bool(align_corners), narrow)


def _fake(input: Tensor, height: int, width: int, align_corners: bool, narrow: bool) -> Tensor:
    return input.new_empty(input.shape[0], height, width, dtype=torch.uint8 if narrow else torch.int64)


_registry.register(
    "upsample_argmax(Tensor input, SymInt height, SymInt width, bool align_corners, bool narrow) -> Tensor",
    file="upsample_argmax",
    reference=reference.upsample_argmax,
    fake=_fake,
    batch=(0,),
)
