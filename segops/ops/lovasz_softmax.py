"""segops.lovasz_softmax: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import lovasz_softmax as reference

REDUCTIONS = ("mean", "sum", "none")


def lovasz_softmax(
    input: Tensor,
    target: Tensor,
    *,
    from_logits: bool = True,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Lovasz-softmax loss: a convex surrogate of ``1 - IoU``, averaged over classes.

    Berman, Rannen Triki and Blaschko, *The Lovasz-Softmax Loss: A Tractable Surrogate for the Optimization of the
    Intersection-over-Union Measure in Neural Networks*, CVPR 2018. For each class c, the errors
    ``|[y_i = c] - p_c(i)|`` of all pixels are sorted, and their sum is weighted by :func:`lovasz_grad`. For predictions
    of 0 and 1 it is ``1 - IoU``.

    Softmax, errors, sort, gradient and reduction are one operator: all classes and images are one segmented problem,
    and nothing of the size of ``input`` is kept for the backward pass. Steps of the Jaccard loss are quotients of
    integer counts, not differences of float32 numbers near 1 as in the published code and its copies (segmentation
    models PyTorch, MMSegmentation), which lose most of the gradient of a large batch.

    Args:
        input: ``(N, C, ...)`` logits, or probabilities with ``from_logits=False``; float64, float32, bfloat16 or
            float16 (computed in float32). ``(N, ...)`` or ``(N, 1, ...)`` is the binary case: the logit (for a sigmoid)
            or probability of class 1.
        target: ``(N, ...)`` integer labels from 0 to C - 1 (0 and 1 in the binary case), or ``ignore_index``.
        from_logits: apply softmax (binary: sigmoid) first. Default ``True``.
        classes: which classes are averaged: ``"present"`` (default) those with a pixel in the set at hand (ignored
            pixels do not count), ``"all"``, or a list of labels, all of which count. A class that is averaged but
            absent contributes its largest probability. The binary case has one class, 1.
        per_image: a set is an image (``True``) or the whole batch (``False``, default).
        ignore_index: label of pixels that take no part; their gradient is 0. Default ``None``.
        class_weight: ``(C,)`` factors of the classes' losses (``(1,)`` in the binary case). The mean is still over the
            number of classes, as in MMSegmentation, not over the sum of weights. Gets no gradient.
        reduction: of the sets' losses with ``per_image=True``: ``"mean"`` (default; every image counts, without a valid
            pixel as 0), ``"sum"`` or ``"none"``. The batch as one set has one loss, whatever the reduction.

    Returns:
        A scalar, or ``(N,)`` with ``per_image=True`` and ``reduction="none"``, in the dtype of ``input`` (float32
        inside autocast). 0, with gradients of 0, where nothing is left to count.

    Differentiable once with respect to ``input``. Which of equal errors goes first is unspecified. A NaN at a valid
    pixel makes the loss of its set NaN, and that set's gradient.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or a label out of range (on CUDA a device-side
            assertion, as in ``torch.nn.functional.cross_entropy``, so that the host need not wait).

    Example:
        >>> import torch, segops
        >>> logits = torch.randn(2, 4, 32, 32, requires_grad=True)
        >>> target = torch.randint(0, 4, (2, 32, 32))
        >>> loss = segops.lovasz_softmax(logits, target, ignore_index=255)
        >>> loss.backward()
        >>> 0 < loss.item() < 1, logits.grad.shape
        (True, torch.Size([2, 4, 32, 32]))
    """
    _checks.floating("input", _checks.dense("input", input, "(N, C, ...)"))
    target = _checks.labels("target", target, input, "input")
    binary = input.shape == target.shape
    x = input.unsqueeze(1) if binary else input
    if x.dim() < 3 or x.shape[1] == 0 or (x.shape[0], *x.shape[2:]) != tuple(target.shape):
        raise ValueError(
            f"target: expected shape (N, ...) for input (N, C, ...) with C >= 1, or the shape of a binary input, got "
            f"{_checks.shape(target)} for input {_checks.shape(input)}"
        )
    channels = x.shape[1]
    indices = _class_indices(classes, channels)
    weight = None if class_weight is None else _checks.class_weight(class_weight, x, "input")
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    _checks.choice("reduction", reduction, REDUCTIONS)
    wide = _checks.widened(x).flatten(2)
    weight = None if weight is None else weight.to(wide.dtype)
    present = isinstance(classes, str) and classes == "present"
    options = indices, present, bool(per_image), ignore_index, bool(from_logits)
    losses = _registry.call(torch.ops.segops.lovasz_softmax, wide, target.flatten(1), weight, *options)
    return _checks.narrowed(_reduced(losses, per_image, reduction), input)


def _reduced(losses: Tensor, per_image: bool, reduction: str) -> Tensor:
    """The losses of the sets (S,) as the caller wants them; no sets have the mean 0."""
    if not per_image:
        return losses.sum()
    if reduction == "none":
        return losses
    return losses.sum() / max(len(losses), 1) if reduction == "mean" else losses.sum()


def _class_indices(classes: str | Sequence[int], channels: int) -> list[int]:
    """Channels that are averaged; the only channel of the binary case is class 1."""
    if isinstance(classes, str):
        _checks.choice("classes", classes, ("present", "all"))
        return list(range(channels))
    if isinstance(classes, Tensor) or not isinstance(classes, Sequence):
        raise TypeError(f"classes: expected 'present', 'all' or a list of labels, got {type(classes).__name__}")
    labels = [1] if channels == 1 else list(range(channels))
    chosen = [_checks.integer(f"classes[{i}]", c) for i, c in enumerate(classes)]
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(labels):
        raise ValueError(f"classes: expected labels from {labels[0]} to {labels[-1]}, each once, got {chosen}")
    return [labels.index(c) for c in chosen]


def _fake(input, target, class_weight, classes, present, per_image, ignore_index, from_logits) -> Tensor:
    return input.new_empty(input.shape[0] if per_image else 1)


def _setup_context(ctx, inputs, output) -> None:
    input, target, class_weight, *ctx.options = inputs
    ctx.save_for_backward(input, target, class_weight)


def _backward(ctx, grad: Tensor):
    return torch.ops.segops.lovasz_softmax_backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * 7


def _fake_backward(grad, input, *rest) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


_ARGUMENTS = (
    "Tensor input, Tensor target, Tensor? class_weight, int[] classes, bool present, bool per_image, "
    "int? ignore_index, bool from_logits"
)
_registry.register(
    f"lovasz_softmax({_ARGUMENTS}) -> Tensor",
    file="lovasz_softmax",
    reference=reference.lovasz_softmax,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_registry.register(
    f"lovasz_softmax_backward(Tensor grad, {_ARGUMENTS}) -> Tensor",
    file="lovasz_softmax",
    reference=reference.lovasz_softmax_backward,
    fake=_fake_backward,
)
