"""segops.inference.multi_scale_flip: the average over resized and mirrored images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ._model import MERGES, Model, evaluating, from_merge, image_batch, logits_of, resized, to_merge

# Each symmetry: mirrored left to right, mirrored upside down, rows and columns exchanged (after the mirrors).
_SYMMETRIES = {
    "none": [(False, False, False)],
    "horizontal": [(False, False, False), (True, False, False)],
    "both": [(h, v, False) for h in (False, True) for v in (False, True)],
    "dihedral": [(h, v, t) for h in (False, True) for v in (False, True) for t in (False, True)],
}


def multi_scale_flip(
    model: Model,
    image: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool | str = True,
    merge: str = "probability",
    size_divisor: int = 1,
    swap: Sequence[tuple[int, int]] = (),
    align_corners: bool = False,
) -> Tensor:
    r"""Average what a model says of an image, resized and mirrored (test-time augmentation).

    For each scale and each mirroring: resize the image, mirror it, call the model, mirror its logits back, resize them
    to the size of the image, average.

    Args:
        model: as in :func:`segops.inference.sliding_window`; also ``functools.partial`` of that function.
        image: ``(N, C, H, W)``, floating point.
        scales: factors of the image's sides. Default: 1 alone. MMSegmentation's are 0.5 to 1.75 in steps of 0.25.
        flip: ``"horizontal"`` or ``True`` (default), ``"none"`` or ``False``, ``"both"`` (four: left to right, upside
            down, both), or ``"dihedral"`` (eight: with rows and columns exchanged).
        merge: average ``"probability"`` s (default; softmax, of one class sigmoid; MMSegmentation) or ``"logit"`` s.
        size_divisor: sides of resized images are rounded up to its multiples. Default 1; many networks want 32.
        swap: pairs of labels that trade places in a mirror, like left and right arms.
        align_corners: how images and logits are resized. Default ``False``.

    Returns:
        ``(N, K, H, W)`` float32 (float64, if the model says so) logits; with ``merge="probability"`` their softmax is
        the average.

    Raises:
        TypeError: for arguments of the wrong kind, or a model that returns no tensor.
        ValueError: for shapes and options that do not fit.

    Example:
        >>> import torch, segops
        >>> model, image = torch.nn.Conv2d(3, 5, 3, padding=1), torch.randn(1, 3, 40, 50)
        >>> segops.inference.multi_scale_flip(model, image, scales=(0.5, 1, 1.5), size_divisor=8).shape
        torch.Size([1, 5, 40, 50])
    """
    image = _checks.floating("image", image_batch("image", image))
    if isinstance(scales, str) or not isinstance(scales, Sequence) or not scales:
        raise ValueError(f"scales: expected a list of at least one number, got {scales!r}")
    factors = _checks.positives("scales", scales, len(scales))
    _checks.choice("merge", merge, MERGES)
    _checks.count("size_divisor", size_divisor, 1)
    name = ("none", "horizontal")[flip] if isinstance(flip, bool) else flip
    symmetries = _SYMMETRIES[_checks.choice("flip", name, tuple(_SYMMETRIES))]
    height, width = image.shape[2:]
    total: Tensor | None = None
    with evaluating(model):
        for factor in factors:
            size = [-(-max(round(n * factor), 1) // size_divisor) * size_divisor for n in (height, width)]
            scaled = resized(image, size, align_corners)
            for symmetry in symmetries:
                logits = _inverse(logits_of(model, _mirrored(scaled, *symmetry), align_corners), *symmetry)
                if symmetry[0] != symmetry[1]:  # two mirrors are a rotation, which leaves left and right as they are
                    logits = _swapped(logits, swap)
                value = to_merge(resized(logits, (height, width), align_corners), merge)
                total = value if total is None else total + value  # not in place: it may be the model's own
    assert total is not None  # there is at least one scale
    return from_merge(total / (len(factors) * len(symmetries)), merge)


def _mirrored(x: Tensor, horizontal: bool, vertical: bool, transposed: bool) -> Tensor:
    x = x.flip([d for d, mirror in ((3, horizontal), (2, vertical)) if mirror])
    return x.transpose(2, 3).contiguous() if transposed else x


def _inverse(x: Tensor, horizontal: bool, vertical: bool, transposed: bool) -> Tensor:
    return _mirrored(x.transpose(2, 3) if transposed else x, horizontal, vertical, False)


def _swapped(logits: Tensor, swap: Sequence[tuple[int, int]]) -> Tensor:
    """The channels of each pair exchanged."""
    if not swap:
        return logits
    order = list(range(logits.shape[1]))
    for a, b in swap:
        if not 0 <= min(a, b) <= max(a, b) < len(order):
            raise ValueError(f"swap: expected pairs of labels from 0 to {len(order) - 1}, got {(a, b)}")
        order[a], order[b] = order[b], order[a]
    return logits[:, torch.tensor(order, device=logits.device)]
