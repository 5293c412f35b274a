"""segops.losses.binary_cross_entropy: one class, or each class against the rest."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ._contract import Loss, per_class, pixel_weight, prepare, reduce_pixels


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str | None = None,
    pos_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "valid",
) -> Tensor:
    r"""Binary cross entropy of logits, ``-[w+ t log p + (1 - t) log(1 - p)]`` with ``p = sigmoid(z)``.

    Args:
        logits: ``(N, H, W)`` or ``(N, C, H, W)``; float64, float32, bfloat16 or float16 (computed in float32).
        target: integer or bool 0, 1 or ``ignore_index``, of the shape of ``logits``, or ``(N, H, W)`` for one class.
            With ``mode="multilabel"`` also labels ``(N, H, W)`` from 0 to C - 1: each class against the rest, as
            MMSegmentation's ``use_sigmoid=True``.
        mode: ``"binary"`` (C = 1), ``"multilabel"``, or ``None`` (default): what the shapes say.
        pos_weight: ``(C,)`` factors of the terms with t = 1, as torch's; MMSegmentation calls it ``class_weight``.
        class_weight: ``(C,)`` factors of the terms of each class.
        label_smoothing: s of the targets ``t (1 - s) + (1 - t) s``, as segmentation models PyTorch's
            ``smooth_factor``. Default 0.
        ignore_index: target of elements that take no part. Default 255; ``None``: there are none.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``, a map of the shape of ``logits`` with 0 where ignored.
        mean_over: the mean is the sum divided by the number of elements that are not ignored (``"valid"``, default),
            by that of all elements (``"all"``; MMSegmentation's and segmentation models PyTorch's default), or by the
            sum of the weights of valid elements (``"weights"``).

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast); 0, with gradients of 0, if all is ignored.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[[1, 0, 255]]])
        >>> segops.losses.binary_cross_entropy(logits, target)
        tensor(0.2201)
    """
    task = prepare(logits, target, ignore_index, mode, ("binary", "multilabel"))
    smoothing = _checks.fraction("label_smoothing", label_smoothing)
    positive = per_class("pos_weight", pos_weight, task)
    t = task.positive().to(task.x.dtype)
    if smoothing:
        t = t * (1 - smoothing) + (1 - t) * smoothing
    positive = None if positive is None else positive.view(-1, 1, 1)
    weight = pixel_weight(class_weight, task)
    loss = F.binary_cross_entropy_with_logits(task.x, t, weight, pos_weight=positive, reduction="none")
    return reduce_pixels(loss, weight, task.valid, task, reduction, mean_over)


class BinaryCrossEntropyLoss(Loss):
    """:func:`segops.losses.binary_cross_entropy` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.BinaryCrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.randn(2, 8, 8), torch.randint(0, 2, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(binary_cross_entropy)
