"""segops.conv_crf: windows, blur and iterations around the messages; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import conv_crf as reference
from ..reference.mean_field import normalized
from .dense_crf import _check_image
from .mean_field import NORMALIZATIONS, _check_compatibility

STARTS = ("softmax", "log_softmax")

Filter = Callable[[Tensor], Tensor]


def conv_crf(
    logits: Tensor,
    image: Tensor,
    *,
    filter_size: int = 11,
    blur: int = 4,
    iterations: int = 5,
    unary_weight: float | Tensor = 0.8,
    spatial_sigma: float | Sequence[float] | Tensor = 3.0,
    spatial_weight: float | Tensor = 0.6,
    bilateral_sigma_xy: float | Sequence[float] | Tensor | None = None,
    bilateral_sigma_rgb: float | Sequence[float] | Tensor = 13.0,
    bilateral_weight: float | Tensor = 2.0,
    compatibility: Tensor | None = None,
    normalization: str = "none",
    start: str = "softmax",
    return_logits: bool = False,
) -> Tensor:
    r"""Refine a segmentation with a CRF whose kernels end after a few pixels.

    The dense CRF of :func:`dense_crf` with every kernel cut to a window, of Teichmann and Cipolla, *Convolutional CRFs
    for Semantic Segmentation*, 2018: the sums are exact, and neighbours further away than half the window are
    independent. With ``U = -log_softmax(logits)`` and the two kernels

    .. math:: k(p, q) = w_s e^{-|p - q|^2 / 2 \sigma_s^2} + w_b e^{-|p - q|^2 / 2 \sigma_{xy}^2 - |I_p - I_q|^2 / 2
              \sigma_{rgb}^2},

    an iteration is :math:`Q \leftarrow softmax(-u U - C [k * Q])`. The term ``q = p`` stays in the sum, and there is
    nothing beyond the border. With ``blur=1``, ``unary_weight=1`` and a window as large as the image this is
    :func:`dense_crf` with ``algorithm="exact"``. Weights of the window are made where they are used: neither they nor
    the unfolded maps are in memory.

    Args:
        logits: ``(N, L, H, W)`` unnormalised log-probabilities; float64, float32, bfloat16 or float16 (computed in
            float32).
        image: ``(N, C, H, W)`` with C >= 1 channels, uint8 or floating point, colours in the units of
            ``bilateral_sigma_rgb``.
        filter_size: the window's width and height, odd. Default 11.
        blur: messages pass between cells of so many pixels by as many, means of what is in them, and are interpolated
            back; the window then spans ``blur * filter_size`` pixels. 1 is exact. Default 4. Cells lie on a regular
            grid; the published code moves those at a border that cuts them.
        iterations: mean-field updates; 0 returns the softmax. Default 5.
        unary_weight: u, a number or a tensor with one element or one for each label. Default 0.8.
        spatial_sigma: standard deviation of the spatial kernel in pixels; two of them are (x, y). Default 3.
        spatial_weight: its weight, a number or a tensor with one element. Default 0.6.
        bilateral_sigma_xy: of position in the bilateral kernel; ``None`` (default): the window alone limits it.
        bilateral_sigma_rgb: of colour, one for all channels or one each. Default 13.
        bilateral_weight: as ``spatial_weight``. Default 2.
        compatibility: C as in :func:`mean_field`: ``None`` (Potts), a vector ``(L,)`` or a matrix ``(L, L)``.
        normalization: ``"none"`` (default), or ``"symmetric"``, ``"before"``, ``"after"`` as in :func:`mean_field`.
        start: what the first messages carry, ``"softmax"`` (default), or ``"log_softmax"`` as in the published code.
        return_logits: return the argument of the last softmax instead of marginals.

    Returns:
        Marginals (or logits) ``(N, L, H, W)``, in the dtype of ``logits`` (float32 inside autocast). Values that are
        not finite spread over their windows.

    The defaults are those of the published code, where weights of 3 and 10 are multiplied by 0.2 and 0.8 = 1 - 0.2.

    Differentiable with respect to logits, image and every weight or sigma that is a tensor (positive, which is not
    checked for tensors).

    Raises:
        TypeError: for arguments of the wrong kind or dtype.
        ValueError: for shapes, devices or values that do not fit, sigmas <= 0, an even ``filter_size``.

    Example:
        >>> import torch, segops
        >>> image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
        >>> segops.conv_crf(torch.randn(1, 5, 20, 30), image, filter_size=7, blur=2).shape
        torch.Size([1, 5, 20, 30])
    """
    _checks.logit_map("logits", logits)
    _check_image(image, logits)
    _check_window(filter_size, blur)
    iterations = _checks.count("iterations", iterations)
    _checks.choice("normalization", normalization, NORMALIZATIONS)
    _checks.choice("start", start, STARTS)
    wide = _checks.widened(logits)
    blur = min(blur, max(logits.shape[2:]))  # one cell is all of the map
    device = "cpu" if logits.device.type == "meta" else logits.device.type  # meta tensors have no autocast
    with torch.autocast(device, enabled=False):  # for what stands around the operators
        weight = _weight("unary_weight", unary_weight, logits.shape[1], wide)
        sigma_rgb = _sigmas("bilateral_sigma_rgb", bilateral_sigma_rgb, image.shape[1], wide)
        spatial = _window(filter_size, blur, _sigmas("spatial_sigma", spatial_sigma, 2, wide))
        bilateral = torch.ones_like(spatial)
        if bilateral_sigma_xy is not None:
            bilateral = _window(filter_size, blur, _sigmas("bilateral_sigma_xy", bilateral_sigma_xy, 2, wide))
        filter, size = _messages(
            image.to(wide.dtype) / sigma_rgb[:, None, None],
            [spatial, bilateral],
            [
                _weight("spatial_weight", spatial_weight, 1, wide),
                _weight("bilateral_weight", bilateral_weight, 1, wide),
            ],
            blur,
            normalization,
        )
        energy = _energy(compatibility, wide)
        cells = (-(-length // size) for length in wide.shape[2:])
        message, scale = wide.new_zeros(*wide.shape[:2], *cells), wide.new_ones(1)  # nothing but the logits at first
        for step in range(iterations):
            softmax = step > 0 or start == "softmax"
            message = _coupled(energy, filter(_update(wide, message, scale, size, softmax, True)))
            scale = weight
        out = _update(wide, message, scale, size, not return_logits, False)
    return _checks.narrowed(out, logits)


def _update(logits: Tensor, message: Tensor, weight: Tensor, *options: int) -> Tensor:
    return _registry.call(torch.ops.segops.conv_crf_update, logits, message, weight, *options)


def _check_window(filter_size: int, blur: int) -> None:
    """An odd window and cells of at least one pixel."""
    if _checks.integer("filter_size", filter_size) < 1 or filter_size % 2 == 0:
        raise ValueError(f"filter_size: expected an odd integer >= 1, got {filter_size}")
    _checks.count("blur", blur, 1)


def _given(name: str, x: Tensor, count: int, like: Tensor) -> Tensor:
    """A tensor of one element or ``count`` as (1 or count,) in the dtype of the computation, with its gradient."""
    _checks.floating(name, _checks.dense(name, x, "with one element"))
    _checks.same_device(name, x, "logits", like)
    if x.numel() not in (1, count):
        raise ValueError(
            f"{name}: expected one element{f' or {count}' if count > 1 else ''}, got shape {_checks.shape(x)}"
        )
    return x.to(like.dtype).reshape(-1)


def _weight(name: str, weight: float | Tensor, count: int, like: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return _given(name, weight, count, like)
    return torch.full((1,), _checks.finite(name, weight), dtype=like.dtype, device=like.device)


def _sigmas(name: str, sigma: float | Sequence[float] | Tensor, count: int, like: Tensor) -> Tensor:
    if isinstance(sigma, Tensor):
        return _given(name, sigma, count, like).expand(count)
    return _checks.filled(_checks.positives(name, sigma, count), like.dtype, like.device)


def _window(size: int, blur: int, sigma: Tensor) -> Tensor:
    """The Gaussian of a window (size, size) of cells; sigma (x, y) in pixels."""
    at = blur * torch.arange(-(size // 2), size // 2 + 1, dtype=sigma.dtype, device=sigma.device)
    x, y = (at / sigma[0]).square(), (at / sigma[1]).square()
    return torch.exp(-0.5 * (x + y[:, None]))


def _energy(compatibility: Tensor | None, like: Tensor) -> Tensor | None:
    if compatibility is None:
        return None
    labels = like.shape[1]
    return _check_compatibility(compatibility, like, (labels,), (labels, labels)).to(like.dtype)


def _coupled(energy: Tensor | None, message: Tensor) -> Tensor:
    """What a message adds to the logits: itself (Potts), or minus its energy."""
    if energy is None:
        return message
    if energy.dim() == 1:
        return -energy[:, None, None] * message
    return -(energy @ message.flatten(2)).view(message.shape)


def _messages(
    colors: Tensor, windows: list[Tensor], weights: list[Tensor], blur: int, normalization: str
) -> tuple[Filter, int]:
    """The sum of the two kernels' messages, between cells of as many pixels as the second result says.

    In one pass and between the cells themselves where the kernels have no norms of their own: these are of pixels.
    """
    cells = reference.Cells(blur, *colors.shape[2:])

    def filter(colors: Tensor, spatial: Tensor, bilateral: Tensor) -> Filter:
        return lambda x: _registry.call(torch.ops.segops.conv_crf_message, x, colors, spatial, bilateral)

    seen = cells.means(colors)
    if normalization == "none":
        return filter(seen, weights[0] * windows[0], weights[1] * windows[1]), blur

    def of_pixels(filter: Filter) -> Filter:
        def spread(x: Tensor) -> Tensor:
            return cells.spread(filter(cells.means(x)))

        return normalized(spread, spread(torch.ones_like(colors[:, :1])), normalization)

    nothing = torch.zeros_like(windows[0])
    scaled = [of_pixels(filter(seen[:, :0], windows[0], nothing)), of_pixels(filter(seen, nothing, windows[1]))]
    return lambda x: weights[0] * scaled[0](x) + weights[1] * scaled[1](x), 1


def _fake(values: Tensor, colors: Tensor, spatial: Tensor, bilateral: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    """Back go the same messages, through the window turned round."""
    values, colors, spatial, bilateral = ctx.saved_tensors
    grad_values = grad_colors = grad_spatial = grad_bilateral = None
    if ctx.needs_input_grad[0]:
        grad_values = torch.ops.segops.conv_crf_message(grad, colors, spatial.flip(0, 1), bilateral.flip(0, 1))
    if any(ctx.needs_input_grad[1:]):
        grad_colors, grad_spatial, grad_bilateral = torch.ops.segops.conv_crf_message_backward(
            grad, values, colors, bilateral
        )
    return grad_values, grad_colors, grad_spatial, grad_bilateral


def _fake_backward(grad, values, colors, bilateral) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(colors, memory_format=torch.contiguous_format),
        torch.empty_like(bilateral, memory_format=torch.contiguous_format),
        torch.empty_like(bilateral, memory_format=torch.contiguous_format),
    )


def _fake_update(logits: Tensor, message: Tensor, weight: Tensor, blur: int, softmax: bool, means: bool) -> Tensor:
    return torch.empty_like(message if means else logits, memory_format=torch.contiguous_format)


def _setup_context_update(ctx, inputs, output) -> None:
    *tensors, ctx.blur, ctx.softmax, ctx.means = inputs
    ctx.save_for_backward(*tensors)


def _backward_update(ctx, grad: Tensor):
    grads = torch.ops.segops.conv_crf_update_backward(grad, *ctx.saved_tensors, ctx.blur, ctx.softmax, ctx.means)
    return *grads, None, None, None


def _fake_update_backward(grad, logits, message, weight, blur, softmax, means) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(logits, memory_format=torch.contiguous_format),
        torch.empty_like(message, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
    )


_registry.register(
    "conv_crf_message(Tensor values, Tensor colors, Tensor spatial, Tensor bilateral) -> Tensor",
    file="conv_crf",
    reference=reference.conv_crf_message,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    "conv_crf_message_backward(Tensor grad, Tensor values, Tensor colors, Tensor bilateral) "
    "-> (Tensor, Tensor, Tensor)",
    file="conv_crf",
    reference=reference.conv_crf_message_backward,
    fake=_fake_backward,
)
_registry.register(
    "conv_crf_update(Tensor logits, Tensor message, Tensor weight, int blur, bool softmax, bool means) -> Tensor",
    file="conv_crf",
    reference=reference.conv_crf_update,
    fake=_fake_update,
    backward=_backward_update,
    setup_context=_setup_context_update,
    batch=(0, 1),
)
_registry.register(
    "conv_crf_update_backward(Tensor grad, Tensor logits, Tensor message, Tensor weight, int blur, bool softmax, "
    "bool means) -> (Tensor, Tensor, Tensor)",
    file="conv_crf",
    reference=reference.conv_crf_update_backward,
    fake=_fake_update_backward,
)
