"""segops.dynamic_depthwise_conv2d: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import dynamic_depthwise_conv2d as reference


def dynamic_depthwise_conv2d(input: Tensor, kernels: Tensor, *, dilation: int | Sequence[int] = 1) -> Tensor:
    r"""Depthwise atrous convolution, each channel with a kernel of its own, each image too where one wishes.

    .. math:: y_{nc}(p) = \sum_{\Delta} k_{nc}(\Delta) \, x_{nc}(p + r \Delta),

    the context-adaptive convolution of Liu et al., *Learning to Predict Context-adaptive Convolution for Semantic
    Segmentation*, 2020, with the dilation r. As every convolution of deep learning it is a cross-correlation: kernels
    are not flipped. Stride 1; beyond its borders the map is 0, and the result has its size.

    Taps that fall into this padding cost nothing: at a dilation of 36 on a map of 65 x 65 they are 60 % of the work.

    Args:
        input: ``(N, C, H, W)``, contiguous or channels_last without a copy; float64, float32, bfloat16 or float16
            (computed in float32).
        kernels: ``(N, C, kh, kw)`` for each image its own, or ``(1, C, kh, kw)`` or ``(C, kh, kw)`` for all of them,
            which is ``conv2d`` with ``groups=C``. Odd in both directions; cast to the dtype of the computation.
        dilation: distance between taps in pixels, at least 1, one number or a pair (y, x). May exceed the map.

    Returns:
        ``(N, C, H, W)`` in the dtype of ``input`` (float32 inside autocast), channels_last where the input is. What
        is not finite spreads as far as its taps reach; a kernel that is not may do so into the padding too, as in
        torch.

    Differentiable with respect to both, any number of times.

    Raises:
        TypeError: for what is no dense floating-point tensor, or a dilation that is no integer.
        ValueError: for shapes or devices that do not fit, even kernels, an empty map, or a dilation below 1.

    Example:
        >>> import torch, segops
        >>> x, kernels = torch.randn(2, 8, 33, 33), torch.randn(2, 8, 3, 3)
        >>> segops.dynamic_depthwise_conv2d(x, kernels, dilation=12).shape
        torch.Size([2, 8, 33, 33])
    """
    _checks.logit_map("input", input)
    _checks.floating("kernels", _checks.dense("kernels", kernels, "(N or 1, C, kh, kw) or (C, kh, kw)"))
    _checks.same_device("kernels", kernels, "input", input)
    batch, channels = input.shape[:2]
    four = kernels if kernels.dim() == 4 else kernels[None]
    if four.dim() != 4 or four.shape[0] not in (1, batch) or four.shape[1] != channels:
        raise ValueError(
            f"kernels: expected shape ({batch} or 1, {channels}, kh, kw) or ({channels}, kh, kw) to go with input, "
            f"got {_checks.shape(kernels)}"
        )
    if four.shape[2] % 2 == 0 or four.shape[3] % 2 == 0:
        raise ValueError(f"kernels: expected an odd height and width, got {_checks.shape(kernels)}")
    rates = _checks.pair("dilation", dilation, 1)
    wide = _checks.widened(input)
    out = _registry.call(torch.ops.segops.dynamic_depthwise_conv2d, wide, four.to(wide.dtype), *rates)
    return _checks.narrowed(out, input)


def _fake(input: Tensor, kernels: Tensor, dilation_y: int, dilation_x: int) -> Tensor:
    return reference.empty_like(input)


def _setup_context(ctx, inputs, output) -> None:
    input, kernels, *ctx.dilation = inputs
    ctx.size = kernels.shape[0], *kernels.shape[2:]
    need_input, need_kernels = ctx.needs_input_grad[:2]
    ctx.save_for_backward(input if need_kernels else None, kernels if need_input else None)


def _backward(ctx, grad: Tensor):
    """The gradient of the input is a convolution with the kernels turned round."""
    input, kernels = ctx.saved_tensors
    grad_input = grad_kernels = None
    if kernels is not None:
        grad_input = torch.ops.segops.dynamic_depthwise_conv2d(grad, kernels.flip(2, 3), *ctx.dilation)
    if input is not None:
        grad_kernels = torch.ops.segops.dynamic_depthwise_conv2d_backward(grad, input, *ctx.size, *ctx.dilation)
    return grad_input, grad_kernels, None, None


def _fake_backward_kernels(grad, input, batch, height, width, dilation_y, dilation_x) -> Tensor:
    return input.new_empty(batch, input.shape[1], height, width)


def _setup_context_kernels(ctx, inputs, output) -> None:
    grad, input, _, _, _, *ctx.dilation = inputs
    ctx.save_for_backward(grad, input)


def _backward_kernels(ctx, direction: Tensor):
    grad, input = ctx.saved_tensors
    grad_grad = torch.ops.segops.dynamic_depthwise_conv2d(input, direction, *ctx.dilation)
    grad_input = torch.ops.segops.dynamic_depthwise_conv2d(grad, direction.flip(2, 3), *ctx.dilation)
    return grad_grad, grad_input, None, None, None, None, None


_registry.register(
    "dynamic_depthwise_conv2d(Tensor input, Tensor kernels, int dilation_y, int dilation_x) -> Tensor",
    file="dynamic_depthwise_conv2d",
    reference=reference.dynamic_depthwise_conv2d,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    "dynamic_depthwise_conv2d_backward(Tensor grad, Tensor input, SymInt batch, SymInt height, SymInt width, "
    "int dilation_y, int dilation_x) -> Tensor",
    file="dynamic_depthwise_conv2d",
    reference=reference.dynamic_depthwise_conv2d_backward,
    fake=_fake_backward_kernels,
    backward=_backward_kernels,
    setup_context=_setup_context_kernels,
)
