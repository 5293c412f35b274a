"""segops.point_sample: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import point_sample as reference


def point_sample(
    input: Tensor | Sequence[Tensor],
    points: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    r"""Values of maps at points: PointRend's ``point_sample``, equal to ``F.grid_sample(input, 2 * points - 1)``.

    Kirillov et al., *PointRend: Image Segmentation as Rendering*, 2020, section 3.2. Several maps, of a feature pyramid
    say, are sampled at the same points in one call and their channels are concatenated.

    Args:
        input: ``(N, C, H, W)``, or a list of such maps with the same N and dtype, of any C, H and W; float64, float32,
            bfloat16 or float16 (computed in float32).
        points: ``(N, ..., 2)``, floating-point, as (x, y) in units of W and H: (0, 0) is the top left corner and (1, 1)
            the bottom right one, of the map with ``align_corners=False`` and of its outer cell centres with
            ``align_corners=True``. Points outside are allowed. They are used in the dtype of the computation.
        mode: ``"bilinear"``, or ``"nearest"``, which rounds halves to the even cell.
        padding_mode: what lies outside: ``"zeros"``, the nearest cell of the ``"border"``, or the ``"reflection"`` of
            the map.
        align_corners: as in ``F.grid_sample``. PointRend always has False.

    Returns:
        ``(N, C, ...)``, C that of all maps together, contiguous, in the dtype of ``input`` (float32 inside autocast).

        A point with a NaN coordinate has the value NaN in both modes. An infinite coordinate is far outside: 0 with
        zeros, the edge with border, NaN with reflection. (``F.grid_sample`` gives NaN or a cell, as it happens.)

    Differentiable once with respect to ``input`` and ``points``, as ``F.grid_sample`` is: the gradient of the points is
    that of the bilinear surface, 0 in mode ``"nearest"`` and where border or reflection clip. Points that are not
    finite pass no gradient to ``input`` and get 0. Gradients of maps in the layout ``torch.channels_last`` have that
    layout. Deterministic on CPUs; on GPUs under ``torch.use_deterministic_algorithms``.

    Raises:
        TypeError: for what is no dense floating-point tensor, or maps of different dtypes.
        ValueError: for shapes, devices or options that do not fit, no map at all, or a map without cells.

    Example:
        >>> import torch, segops
        >>> fine, coarse = torch.rand(2, 256, 56, 56), torch.rand(2, 80, 14, 14)
        >>> segops.point_sample([fine, coarse], torch.rand(2, 100, 2)).shape
        torch.Size([2, 336, 100])
    """
    maps = _maps(input)
    first = maps[0]
    if not isinstance(points, Tensor):
        raise TypeError(f"points: expected a tensor (N, ..., 2), got {type(points).__name__}")
    _checks.floating("points", _checks.tensor("points", points, max(2, points.dim()), "(N, ..., 2)"))
    _checks.same_device("points", points, "input", first)
    if points.shape[-1] != 2 or points.shape[0] != first.shape[0]:
        raise ValueError(
            f"points: expected shape ({first.shape[0]}, ..., 2) to go with input, got {_checks.shape(points)}"
        )
    _checks.choice("mode", mode, reference.MODES)
    _checks.choice("padding_mode", padding_mode, reference.PADDINGS)
    wide = [_checks.widened(x) for x in maps]
    places = points.shape[1:-1]
    flat = points.to(wide[0].dtype).reshape(points.shape[0], places.numel(), 2)
    out = _registry.call(torch.ops.segops.point_sample, flat, wide, mode, padding_mode, bool(align_corners))
    return _checks.narrowed(out.reshape(*out.shape[:2], *places), first)


def _maps(input: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One map or several, checked against the first."""
    if isinstance(input, Tensor):
        named = [("input", input)]
    elif isinstance(input, Sequence) and not isinstance(input, str):
        named = [(f"input[{i}]", x) for i, x in enumerate(input)]
    else:
        raise TypeError(f"input: expected a tensor (N, C, H, W) or a list of them, got {type(input).__name__}")
    if not named:
        raise ValueError("input: expected at least one map, got none")
    first_name, first = named[0]
    for name, x in named:
        _checks.floating(name, _checks.tensor(name, x, 4, "(N, C, H, W)"))
        _checks.same_device(name, x, first_name, first)
        if x.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} like {first_name}, got {x.dtype}")
        if x.shape[0] != first.shape[0]:
            raise ValueError(f"{name}: expected N = {first.shape[0]} like {first_name}, got shape {_checks.shape(x)}")
        if x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(f"{name}: expected at least one cell, got shape {_checks.shape(x)}")
    return [x for _, x in named]


def _fake(points, inputs, mode, padding_mode, align_corners) -> Tensor:
    return points.new_empty(points.shape[0], sum(x.shape[1] for x in inputs), points.shape[1])


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _setup_context(ctx, inputs, output) -> None:
    points, maps, *ctx.options = inputs
    ctx.sizes = [(x.shape[2], x.shape[3], _is_channels_last(x)) for x in maps]
    ctx.channels = [x.shape[1] for x in maps]
    ctx.save_for_backward(points, *(maps if ctx.needs_input_grad[0] else ()))  # else their shapes are enough


def _backward(ctx, grad: Tensor):
    points, *maps = ctx.saved_tensors
    need_points, need_maps = ctx.needs_input_grad[:2]
    grad_points = None
    if need_points:
        grad_points = torch.ops.segops.point_sample_backward_points(grad, points, maps, *ctx.options)
    grad_maps = [
        torch.ops.segops.point_sample_backward_input(g, points, *size, *ctx.options) if need else None
        for need, size, g in zip(need_maps, ctx.sizes, grad.split(ctx.channels, 1), strict=True)
    ]
    return grad_points, grad_maps, *[None] * len(ctx.options)


def _fake_backward_input(grad, points, height, width, channels_last, mode, padding_mode, align_corners) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*grad.shape[:2], height, width), dtype=grad.dtype, device=grad.device, memory_format=layout)


def _fake_backward_points(grad, points, inputs, mode, padding_mode, align_corners) -> Tensor:
    return torch.empty_like(points, memory_format=torch.contiguous_format)


_OPTIONS = "str mode, str padding_mode, bool align_corners"
_registry.register(
    f"point_sample(Tensor points, Tensor[] inputs, {_OPTIONS}) -> Tensor",
    file="point_sample",
    reference=reference.point_sample,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1),
)
_registry.register(
    "point_sample_backward_input(Tensor grad, Tensor points, SymInt height, SymInt width, bool channels_last, "
    f"{_OPTIONS}) -> Tensor",
    file="point_sample",
    reference=reference.point_sample_backward_input,
    fake=_fake_backward_input,
    batch=(0, 1),
)
_registry.register(
    f"point_sample_backward_points(Tensor grad, Tensor points, Tensor[] inputs, {_OPTIONS}) -> Tensor",
    file="point_sample",
    reference=reference.point_sample_backward_points,
    fake=_fake_backward_points,
    batch=(0, 1, 2),
)
