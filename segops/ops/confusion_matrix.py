"""segops.confusion_matrix: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import confusion_matrix as reference

MAX_CLASSES = 1 << 15  # places in the matrix are 32-bit integers


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = 255) -> Tensor:
    r"""How often a pixel of each class was predicted as each class.

    ``matrix[t, p]`` counts the pixels of target t that are predicted as p: rows are targets, columns predictions, as in
    scikit-learn and torchmetrics. One pass over the labels as they are, without copies in 64 bits, or over the logits,
    whose argmax is taken on the way.

    All scores of the field are made from it (Everingham et al., The PASCAL Visual Object Classes Challenge, 2010).

    Args:
        prediction: labels of any integer dtype or bool, in the shape of ``target``; or logits or scores
            ``(N, C, ...)`` with C = ``num_classes``, float64, float32, bfloat16 or float16, of which the largest
            counts: of equal ones the lowest class, and a NaN before all numbers, as in :func:`torch.argmax`. For binary
            logits pass the labels, ``logits > 0``.
        target: labels of any integer dtype or bool; any shape, ``(N, ...)`` for logits.
        num_classes: C.
        ignore_index: pixels of this target are not counted, whatever is predicted there. Default 255; ``None``
            counts all.

    Returns:
        ``(C, C)`` int64; the sum is the number of pixels that are not ignored.

    Not differentiable. Counts are integers: the same for any number of threads, on any device.

    Raises:
        TypeError: for what is no dense tensor of such a dtype, or no integer.
        ValueError: for shapes or devices that do not fit, or a label out of range at a pixel that counts (on CUDA a
            device-side assertion, as in ``torch.nn.functional.cross_entropy``, so that the host need not wait).

    Example:
        >>> import torch, segops
        >>> prediction, target = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[0, 1, 2, 255]])
        >>> segops.confusion_matrix(prediction, target, 3)
        tensor([[1, 0, 0],
                [0, 1, 0],
                [0, 1, 0]])
    """
    num_classes = _checks.count("num_classes", num_classes, least=1)
    if num_classes > MAX_CLASSES:
        raise ValueError(f"num_classes: expected at most {MAX_CLASSES}, got {num_classes}")
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    target = _checks.narrow_labels("target", target)
    _checks.same_device("prediction", _checks.dense("prediction", prediction, "of labels or logits"), "target", target)
    if prediction.is_floating_point():
        prediction = _logits(prediction, target, num_classes)
        target = target.flatten(1)
    else:
        prediction = _checks.narrow_labels("prediction", prediction)
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction: expected labels of shape {_checks.shape(target)} like target, got "
                f"{_checks.shape(prediction)}"
            )
        prediction, target = prediction.reshape(1, -1), target.reshape(1, -1)
    return _registry.call(torch.ops.segops.confusion_matrix, prediction, target, num_classes, ignore_index)


def _logits(x: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Logits (N, C, ...) to go with target (N, ...), as (N, C, P)."""
    x = _checks.widened(_checks.floating("prediction", x)).detach()
    if x.dim() < 3 or x.shape[1] != num_classes or (x.shape[0], *x.shape[2:]) != tuple(target.shape):
        raise ValueError(
            f"prediction: expected logits (N, {num_classes}, ...) for target (N, ...), got {_checks.shape(x)} for "
            f"target {_checks.shape(target)}"
        )
    return x.flatten(2)


def _fake(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> Tensor:
    return target.new_empty((num_classes, num_classes), dtype=torch.int64)


_registry.register(
    "confusion_matrix(Tensor prediction, Tensor target, int num_classes, int? ignore_index) -> Tensor",
    file="confusion_matrix",
    reference=reference.confusion_matrix,
    fake=_fake,
)
