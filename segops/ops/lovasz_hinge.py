"""segops.lovasz_hinge: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import lovasz_hinge as reference
from .lovasz_softmax import REDUCTIONS, _reduced


def lovasz_hinge(
    logits: Tensor,
    target: Tensor,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Lovasz hinge loss: the binary, margin-based surrogate of ``1 - IoU`` of the foreground.

    Yu and Blaschko, *Learning Submodular Losses with the Lovasz Hinge*, ICML 2015; Berman, Rannen Triki and Blaschko,
    *The Lovasz-Softmax Loss*, CVPR 2018. The hinge errors ``1 - z_i (2 y_i - 1)`` are sorted, cut off at 0 and summed
    with the weights of :func:`lovasz_grad`. One fused operator; nothing of the size of ``logits`` is kept for the
    backward pass.

    Args:
        logits: ``(N, ...)`` raw scores; float64, float32, bfloat16 or float16 (computed in float32).
        target: labels 0 and 1, or ``ignore_index``, integer or bool, of the shape of ``logits`` (or without its channel
            of size 1). Multilabel targets in the convention of segmentation models PyTorch, all classes in one vector,
            are ``per_image=False``.
        per_image: a set is an image (``True``, default, as published) or the whole batch (``False``).
        ignore_index: label of pixels that take no part; their gradient is 0. Default ``None``.
        reduction: of the images' losses with ``per_image=True``: ``"mean"`` (default; every image counts, without a
            valid pixel as 0), ``"sum"`` or ``"none"``. The batch as one set has one loss, whatever the reduction.

    Returns:
        A scalar, or ``(N,)`` with ``per_image=True`` and ``reduction="none"``, in the dtype of ``logits`` (float32
        inside autocast). An image without foreground costs its largest positive error.

    Differentiable once with respect to ``logits``. Which of equal errors goes first is unspecified. A NaN at a valid
    pixel makes the loss of its set NaN, and that set's gradient.

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or options that do not fit, or another label (on CUDA a device-side assertion,
            so that the host need not wait).

    Example:
        >>> import torch, segops
        >>> logits = torch.tensor([[2.0, -0.5, -3.0, 0.25]])
        >>> segops.lovasz_hinge(logits, torch.tensor([[1, 1, 0, 0]]))
        tensor(0.9583)
    """
    _checks.floating("logits", _checks.dense("logits", logits, "(N, ...)"))
    target = _checks.labels("target", target, logits, "logits")
    x = logits.squeeze(1) if logits.dim() == target.dim() + 1 and logits.shape[1] == 1 else logits
    if x.dim() < 2 or x.shape != target.shape:
        raise ValueError(
            f"target: expected the shape (N, ...) of logits, got {_checks.shape(target)} for {_checks.shape(logits)}"
        )
    ignore_index = None if ignore_index is None else _checks.integer("ignore_index", ignore_index)
    _checks.choice("reduction", reduction, REDUCTIONS)
    options = bool(per_image), ignore_index
    wide = _checks.widened(x).flatten(1)
    losses = _registry.call(torch.ops.segops.lovasz_hinge, wide, target.flatten(1), *options)
    return _checks.narrowed(_reduced(losses, per_image, reduction), logits)


def _fake(logits: Tensor, target: Tensor, per_image: bool, ignore_index: int | None) -> Tensor:
    return logits.new_empty(logits.shape[0] if per_image else 1)


def _setup_context(ctx, inputs, output) -> None:
    logits, target, *ctx.options = inputs
    ctx.save_for_backward(logits, target)


def _backward(ctx, grad: Tensor):
    return torch.ops.segops.lovasz_hinge_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


def _fake_backward(grad, logits, target, per_image, ignore_index) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_ARGUMENTS = "Tensor logits, Tensor target, bool per_image, int? ignore_index"
_registry.register(
    f"lovasz_hinge({_ARGUMENTS}) -> Tensor",
    file="lovasz_hinge",
    reference=reference.lovasz_hinge,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_registry.register(
    f"lovasz_hinge_backward(Tensor grad, {_ARGUMENTS}) -> Tensor",
    file="lovasz_hinge",
    reference=reference.lovasz_hinge_backward,
    fake=_fake_backward,
)
