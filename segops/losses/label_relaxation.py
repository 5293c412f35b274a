"""segops.losses.label_relaxation: at borders, any label of the neighbourhood is right."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ._contract import Loss, pixel_weight, prepare, reduce_pixels


def label_relaxation(
    logits: Tensor,
    target: Tensor,
    *,
    radius: int = 1,
    class_weight: Tensor | None = None,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    mean_over: str = "weights",
) -> Tensor:
    r"""Cross entropy of the union of the labels around each pixel, ``-w_y log sum_{c in N(i)} p_c``.

    Zhu et al., *Improving Semantic Segmentation via Video Propagation and Label Relaxation*, CVPR 2019, equation 3:
    N(i) are the labels within a square window around pixel i. Inside of regions this is cross entropy; along borders,
    where annotations are the least exact, no side is preferred.

    Args:
        logits: ``(N, C, H, W)`` with C >= 2; float64, float32, bfloat16 or float16 (computed in float32).
        target: ``(N, H, W)`` integer labels from 0 to C - 1, or ``ignore_index``, which adds nothing to N(i).
        radius: of the window, ``2 radius + 1`` pixels wide. Default 1, as in the paper; 0 is cross entropy.
        class_weight: ``(C,)`` factors, by the pixel's own label.
        ignore_index, reduction, mean_over: as in :func:`segops.losses.cross_entropy`.

    Returns:
        The loss, in the dtype of ``logits`` (float32 inside autocast); 0, with gradients of 0, if all is ignored.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or (on CPU tensors) a label out of range.

    Example:
        >>> import torch, segops
        >>> target = torch.tensor([[[0, 0, 1, 1]]])
        >>> segops.losses.label_relaxation(torch.zeros(1, 2, 1, 4), target, reduction="none")
        tensor([[[0.6931, 0.0000, 0.0000, 0.6931]]])
    """
    task = prepare(logits, target, ignore_index, None, ("multiclass",))
    radius = _checks.count("radius", radius)
    near = F.max_pool2d(task.positive().to(task.x.dtype), 2 * radius + 1, stride=1, padding=radius) > 0
    near = near | ~task.valid
    loss = task.x.logsumexp(1, keepdim=True) - task.x.masked_fill(~near, float("-inf")).logsumexp(1, keepdim=True)
    weight = pixel_weight(class_weight, task)
    loss = loss if weight is None else loss * weight
    return reduce_pixels(loss, weight, task.valid, task, reduction, mean_over)


class LabelRelaxationLoss(Loss):
    """:func:`segops.losses.label_relaxation` as a module.

    Example:
        >>> import torch, segops
        >>> loss = segops.losses.LabelRelaxationLoss(radius=2)
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))).shape
        torch.Size([])
    """

    function = staticmethod(label_relaxation)
