"""segops.losses.ohem_cross_entropy: cross entropy of the hardest pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ._contract import Loss, label_entropy, pixel_weight, prepare, reduce_pixels


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float | None = 0.7,
    min_kept: int | float = 100_000,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "valid",
) -> Tensor:
    r"""Cross entropy of hard pixels only: online hard example mining.

    Shrivastava, Gupta and Girshick, *Training Region-based Object Detectors with Online Hard Example Mining*, CVPR
    2016; Wu, Shen and van den Hengel, *High-performance Semantic Segmentation Using Very Deep Fully Convolutional
    Networks*, 2016. A pixel is kept if its label's probability is below ``threshold``, or among the ``min_kept``
    lowest of the batch. Which are kept has no gradient.

    Args:
        logits: ``(N, C, H, W)`` with C >= 2; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels from 0 to C - 1, or ``ignore_index``.
        threshold: from 0 to 1. Default 0.7. ``None``: the ``min_kept`` pixels of the largest loss, class weights
            included, and no others.
        min_kept: how many pixels of the batch are kept at least (fewer only if there are fewer; more where equal ones
            are last): an integer >= 1 (default 100000), or a share of the valid pixels, a float in (0, 1]. The pixel
            sampler of MMSegmentation counts for each image: pass N times its number.
        class_weight: ``(C,)`` factors.
        ignore_index: label of pixels that take no part. Default 255; ``None``: there are none.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``, a map ``(N, H, W)`` with 0 where nothing is kept.
        mean_over: the mean is the sum divided by the number of kept pixels (``"valid"``, default; HRNet and
            MMSegmentation's loss), by the sum of their weights (``"weights"``), or by the number of all pixels
            (``"all"``; MMSegmentation's sampler).

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast); 0, with gradients of 0, if all is ignored.

    Unlike HRNet and MMSegmentation, which keep probabilities strictly below a pixel's, a batch with fewer valid pixels
    than ``min_kept`` keeps all of them.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits = torch.tensor([[[[4.0, 0.5, -1.0]], [[0.0, 0.0, 0.0]]]])
        >>> target = torch.zeros(1, 1, 3, dtype=torch.long)
        >>> segops.losses.ohem_cross_entropy(logits, target, min_kept=1, reduction="none")
        tensor([[[0.0000, 0.4741, 1.3133]]])
    """
    task = prepare(logits, target, ignore_index, None, ("multiclass",))
    share = isinstance(min_kept, float)
    kept = _checks.positive("min_kept", min_kept) if share else _checks.count("min_kept", min_kept, 1)
    if share and kept > 1:
        raise ValueError(f"min_kept: expected an integer, or a share in (0, 1], got {min_kept}")
    threshold = None if threshold is None else _checks.fraction("threshold", threshold)
    plain = label_entropy(task.x.log_softmax(1), task)
    weight = pixel_weight(class_weight, task)
    loss = plain if weight is None else plain * weight
    with torch.no_grad():
        hardness = loss if threshold is None else plain
        hard = ~(hardness < _kth_largest(hardness, task.valid, kept))  # so that a NaN is kept
        if threshold is not None:
            hard |= torch.exp(-plain) < threshold
    return reduce_pixels(loss, weight, task.valid & hard, task, reduction, mean_over)


def _kth_largest(x: Tensor, valid: Tensor, kept: int | float) -> Tensor:
    """The ``kept``-th largest valid value, -inf if there are fewer; found without waiting for the device."""
    x = torch.where(valid, x, float("-inf")).flatten()
    if not len(x):
        return x.new_zeros(())
    if isinstance(kept, int):
        return x.topk(min(kept, len(x)), sorted=False).values.min()  # deterministic on CUDA, kthvalue is not
    place = (kept * valid.sum().double()).ceil().long().clamp(min=1) - 1
    return x.sort(descending=True).values.gather(0, place.view(1))


class OHEMCrossEntropyLoss(Loss):
    """:func:`segops.losses.ohem_cross_entropy` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.OHEMCrossEntropyLoss(threshold=None, min_kept=0.1)
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(ohem_cross_entropy)
