"""segops.atrous_conv2d: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import atrous_conv2d as reference


def atrous_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""Convolution with holes: ``torch.nn.functional.conv2d`` that does not multiply by padding.

    .. math:: y_{k}(p) = b_k + \sum_{c, t} w_{kct}\, x_c(p + r t)

    for the taps :math:`t` of the kernel and the rate :math:`r`, Chen et al., *DeepLab: Semantic Image Segmentation with
    Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs*, 2016. At the rates of segmentation most taps
    fall outside of the map: with rate 36 on 65 x 65 pixels, 60 % of the multiplications are by zero. They are skipped,
    forward and backward, tap by tap; results are those of ``conv2d`` up to rounding.

    Args:
        input: ``(N, C, H, W)``; float64, float32, bfloat16 or float16 (float32 sums), planes or channels_last.
        weight: ``(K, C / groups, kh, kw)`` in the dtype of ``input``.
        bias: ``(K,)`` or ``None`` (default).
        stride: of the output, rows and columns. Default 1.
        padding: zeros on each side, rows and columns, or ``"same"`` (default, **not** 0 as in ``conv2d``): the output
            has the size of the input. As ``conv2d`` has it, ``"same"`` asks for stride 1; of an odd number of zeros the
            last row or column gets one more.
        dilation: the rate: the distance of taps, rows and columns. Default 1.
        groups: input and output channels are divided into so many parts that do not see each other. Default 1.

    Returns:
        ``(N, K, H', W')`` in the dtype of ``input``, inside autocast that of torch's convolutions, and in its memory
        layout. Where padding is skipped, 0 times an infinite or not-a-number weight does not count.

    Differentiable any number of times with respect to ``input``, ``weight`` and ``bias``.

    Raises:
        TypeError: for what is no dense floating-point tensor, dtypes that differ, or numbers that are no integers.
        ValueError: for shapes, devices or options that do not fit, or a kernel larger than the padded input.

    Example:
        >>> import torch, segops
        >>> x, weight = torch.randn(1, 8, 33, 33), torch.randn(4, 8, 3, 3)
        >>> out = segops.atrous_conv2d(x, weight, dilation=12)
        >>> torch.testing.assert_close(out, torch.nn.functional.conv2d(x, weight, padding=12, dilation=12))
        >>> out.shape
        torch.Size([1, 4, 33, 33])
    """
    _checks.floating("input", _checks.tensor("input", input, 4, "(N, C, H, W)"))
    groups = _checks.count("groups", groups, 1)
    _check_weight("weight", weight, input, groups)
    if bias is not None:
        _check_bias("bias", bias, weight.shape[0], input)
    strides, pads, uneven, rates = _geometry(weight, stride, padding, dilation)
    x, (w, b), dtype = _cast(input, weight, bias)
    if any(uneven):  # torch does the same
        x = torch.nn.functional.pad(x, (0, uneven[1], 0, uneven[0]))
    for axis in (0, 1):
        reach, room = rates[axis] * (weight.shape[2 + axis] - 1) + 1, x.shape[2 + axis] + 2 * pads[axis]
        if reach > room:
            raise ValueError(
                f"weight: expected a kernel that fits into the padded input, of {room} {('rows', 'columns')[axis]}; "
                f"got one that reaches over {reach}"
            )
    if _is_depthwise(x, w, strides, pads, rates, groups):
        out = _registry.call(torch.ops.segops.dynamic_depthwise_conv2d, x, w.transpose(0, 1), *rates)
        return (out if b is None else out + b[:, None, None]).to(dtype)
    return _registry.call(torch.ops.segops.atrous_conv2d, x, w, b, strides, pads, rates, groups, "auto").to(dtype)


def _is_depthwise(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> bool:
    """Whether it is what dynamic_depthwise_conv2d computes, with the same kernels for every image."""
    kernel = weight.shape[2:]
    same = padding == [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)] and all(k % 2 for k in kernel)
    wide = input.dtype in (torch.float32, torch.float64)
    return wide and groups == input.shape[1] == weight.shape[0] and stride == [1, 1] and same


def _geometry(
    weight: Tensor, stride: int | Sequence[int], padding: str | int | Sequence[int], dilation: int | Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Stride, padding on both sides, padding at the end besides, and dilation, for rows and columns."""
    strides, rates = _checks.pair("stride", stride, 1), _checks.pair("dilation", dilation, 1)
    if not isinstance(padding, str):
        return strides, _checks.pair("padding", padding, 0), [0, 0], rates
    _checks.choice("padding", padding, ("same",))
    if strides != [1, 1]:
        raise ValueError(f"padding: expected numbers, since 'same' asks for stride 1, got stride {stride}")
    total = [d * (k - 1) for d, k in zip(rates, weight.shape[2:], strict=True)]
    return strides, [t // 2 for t in total], [t % 2 for t in total], rates


def _detail(
    backend: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> str:
    """Which of its two ways a backend takes, product by product."""
    if backend == "reference":
        return "tap by tap, on padded input"
    strides, pads, _, rates = _geometry(weight, stride, padding, dilation)
    if _is_depthwise(*_cast(input, weight)[:1], weight, strides, pads, rates, groups):
        return "as dynamic_depthwise_conv2d"
    if backend == "triton":
        from ..kernels.atrous_conv2d import methods
    else:
        methods = torch.ops.segops.atrous_conv2d_methods
    ways = methods(input, weight, strides, pads, rates, groups)
    names = {"skip": "skips the padding", "dense": "torch's convolution"}
    products = "forward", "gradient of input", "gradient of weight"
    return ", ".join(f"{p}: {names[w]}" for p, w in zip(products, ways, strict=True))


def _check_weight(name: str, weight: Tensor, input: Tensor, groups: int) -> None:
    _checks.floating(name, _checks.tensor(name, weight, 4, "(K, C / groups, kh, kw)"))
    _same_kind(name, weight, input)
    channels = input.shape[1]
    if channels % groups or weight.shape[0] % groups:
        raise ValueError(
            f"groups: expected a divisor of {channels} input and {weight.shape[0]} output channels, got {groups}"
        )
    if weight.shape[1] * groups != channels or 0 in weight.shape[2:]:
        raise ValueError(
            f"{name}: expected shape (K, {channels // groups}, kh, kw) to go with input, got {_checks.shape(weight)}"
        )


def _check_bias(name: str, bias: Tensor, channels: int, input: Tensor) -> None:
    _checks.floating(name, _checks.tensor(name, bias, 1, "(K,)"))
    _same_kind(name, bias, input)
    if bias.shape[0] != channels:
        raise ValueError(f"{name}: expected shape ({channels},) to go with weight, got {_checks.shape(bias)}")


def _same_kind(name: str, x: Tensor, input: Tensor) -> None:
    _checks.same_device(name, x, "input", input)
    if x.dtype != input.dtype and not _checks.autocasting(input):
        raise TypeError(f"{name}: expected {input.dtype} like input, got {x.dtype}")


def _cast(x: Tensor, *others: Tensor | None) -> tuple[Tensor, list[Any], torch.dtype]:
    """All in the dtype of the computation, and that of the result: autocast lowers as for conv2d, CPUs widen halves."""
    (x,) = _checks.lowered(x)
    dtype = x.dtype if x.is_cuda else torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype), [other if other is None else other.to(dtype) for other in others], x.dtype


def _fake(x, weight, bias, stride, padding, dilation, groups, method) -> Tensor:
    height, width = (
        (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (weight.shape[2 + a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
    )
    shape = x.shape[0], weight.shape[0], height, width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=reference.memory_format(x))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight)
    ctx.size = x.shape[2:]
    ctx.channels_last = reference.memory_format(x) == torch.channels_last


def _backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    *geometry, method = ctx.options
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.segops.atrous_conv2d_backward_input(
            grad, weight, *ctx.size, *geometry, ctx.channels_last, method
        )
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.segops.atrous_conv2d_backward_weight(grad, x, weight.shape[2:], *geometry, method)
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, *[None] * len(ctx.options)


def _fake_backward_input(
    grad, weight, height, width, stride, padding, dilation, groups, channels_last, method
) -> Tensor:
    shape = grad.shape[0], weight.shape[1] * groups, height, width
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _setup_context_input(ctx, inputs, output) -> None:
    grad, weight, _, _, *ctx.geometry, _, ctx.method = inputs
    ctx.save_for_backward(grad, weight)


def _backward_input(ctx, twice: Tensor):
    """The gradient of x is linear in grad and weight, and its gradients are a convolution and one of a weight."""
    grad, weight = ctx.saved_tensors
    first = second = None
    if ctx.needs_input_grad[0]:
        first = torch.ops.segops.atrous_conv2d(twice, weight, None, *ctx.geometry, ctx.method)
    if ctx.needs_input_grad[1]:
        second = torch.ops.segops.atrous_conv2d_backward_weight(
            grad, twice, weight.shape[2:], *ctx.geometry, ctx.method
        )
    return first, second, *[None] * 8


def _fake_backward_weight(grad, x, kernel, stride, padding, dilation, groups, method) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1] // groups, *kernel)


def _setup_context_weight(ctx, inputs, output) -> None:
    grad, x, _, *ctx.geometry, ctx.method = inputs
    ctx.save_for_backward(grad, x)
    ctx.channels_last = reference.memory_format(x) == torch.channels_last


def _backward_weight(ctx, twice: Tensor):
    grad, x = ctx.saved_tensors
    first = second = None
    if ctx.needs_input_grad[0]:
        first = torch.ops.segops.atrous_conv2d(x, twice, None, *ctx.geometry, ctx.method)
    if ctx.needs_input_grad[1]:
        second = torch.ops.segops.atrous_conv2d_backward_input(
            grad, twice, *x.shape[2:], *ctx.geometry, ctx.channels_last, ctx.method
        )
    return first, second, *[None] * 6


_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"
_registry.register(
    f"atrous_conv2d(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, str method) -> Tensor",
    file="atrous_conv2d",
    reference=reference.atrous_conv2d,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0,),
    autocast=None,
    detail=_detail,
)
_registry.register(
    f"atrous_conv2d_backward_input(Tensor grad, Tensor weight, SymInt height, SymInt width, {_GEOMETRY}, "
    "bool channels_last, str method) -> Tensor",
    file="atrous_conv2d",
    reference=reference.atrous_conv2d_backward_input,
    fake=_fake_backward_input,
    backward=_backward_input,
    setup_context=_setup_context_input,
    batch=(0,),
    autocast=None,
)
_registry.register(
    f"atrous_conv2d_backward_weight(Tensor grad, Tensor x, int[] kernel, {_GEOMETRY}, str method) -> Tensor",
    file="atrous_conv2d",
    reference=reference.atrous_conv2d_backward_weight,
    fake=_fake_backward_weight,
    backward=_backward_weight,
    setup_context=_setup_context_weight,
    autocast=None,
)
_registry.query(f"atrous_conv2d_methods(Tensor x, Tensor weight, {_GEOMETRY}) -> str[]")
