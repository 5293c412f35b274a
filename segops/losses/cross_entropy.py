"""segops.losses.cross_entropy: softmax cross entropy with class weights and label smoothing."""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from ._contract import Loss, label_entropy, per_class, pixel_weight, prepare, reduce_pixels


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "weights",
) -> Tensor:
    r"""Cross entropy, ``-w_y log softmax(z)_y``, of pixels.

    Args:
        logits: ``(N, C, H, W)`` with C >= 2; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels from 0 to C - 1, or ``ignore_index``.
        class_weight: ``(C,)`` factors.
        label_smoothing: s of ``(1 - s) w_y (-log p_y) + s / C sum_c w_c (-log p_c)``, as torch's. Default 0.
        ignore_index: label of pixels that take no part. Default 255; ``None``: there are none.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``, a map ``(N, H, W)`` with 0 where ignored.
        mean_over: the mean is the sum divided by the sum of the weights ``w_y`` of pixels that are not ignored
            (``"weights"``, default, as torch's), by their number (``"valid"``), or by the number of all pixels, ignored
            ones too (``"all"``; the default of MMSegmentation and segmentation models PyTorch).

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast); 0, with gradients of 0, if all is ignored, where
        torch has NaN.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> logits, target = torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [3, 255]]])
        >>> segops.losses.cross_entropy(logits, target)
        tensor(1.3863)
    """
    task = prepare(logits, target, ignore_index, None, ("multiclass",))
    smoothing = _checks.fraction("label_smoothing", label_smoothing)
    log_p = task.x.log_softmax(1)
    weight = pixel_weight(class_weight, task)
    loss = label_entropy(log_p, task)
    loss = loss if weight is None else loss * weight
    if smoothing:
        weights = per_class("class_weight", class_weight, task)
        every = log_p if weights is None else log_p * weights.view(-1, 1, 1)
        loss = (1 - smoothing) * loss - smoothing * every.mean(1, keepdim=True)
    return reduce_pixels(loss, weight, task.valid, task, reduction, mean_over)


class CrossEntropyLoss(Loss):
    """:func:`segops.losses.cross_entropy` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.CrossEntropyLoss(class_weight=torch.tensor([1.0, 2.0, 0.5]))
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(cross_entropy)
