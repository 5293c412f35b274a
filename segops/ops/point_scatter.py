"""segops.point_scatter: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import point_scatter as reference


def point_scatter(input: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    r"""Point predictions written back: a copy of ``input`` with ``values`` in the cells ``indices``.

    The last step of PointRend's subdivision (Kirillov et al., *PointRend: Image Segmentation as Rendering*, 2020,
    section 3.1), and the inverse of reading cells. Where an index comes more than once, the last value in the order of
    the points is written, on every device; ``Tensor.scatter`` leaves that open.

    Args:
        input: ``(N, C, H, W)``; float64, float32, bfloat16 or float16. It is not changed.
        indices: ``(N, P)``, int64: cells ``y * W + x`` of each image, from 0 to H W - 1.
        values: ``(N, C, P)``, of the dtype of ``input``; nothing is broadcast.

    Returns:
        ``(N, C, H, W)``, contiguous, in the dtype of ``input`` (float32 inside autocast).

    Differentiable with respect to ``input`` (0 in the cells that were written) and ``values`` (0 for a value that a
    later one replaced). Deterministic.

    Raises:
        TypeError: for what is no dense floating-point tensor, or an index or value of another dtype.
        ValueError: for shapes or devices that do not fit, or a cell that does not exist. On CUDA tensors the latter is
            an assertion on the device, which nobody waits for.

    Example:
        >>> import torch, segops
        >>> cells, values = torch.tensor([[1, 5, 1]]), torch.tensor([[[7.0, 8.0, 9.0]]])
        >>> segops.point_scatter(torch.zeros(1, 1, 2, 3), cells, values).tolist()
        [[[[0.0, 9.0, 0.0], [0.0, 0.0, 8.0]]]]
    """
    _checks.floating("input", _checks.tensor("input", input, 4, "(N, C, H, W)"))
    _checks.tensor("indices", indices, 2, "(N, P)")
    _checks.tensor("values", values, 3, "(N, C, P)")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices: expected torch.int64, got {indices.dtype}")
    if values.dtype != input.dtype:
        raise TypeError(f"values: expected {input.dtype} like input, got {values.dtype}")
    _checks.same_device("indices", indices, "input", input)
    _checks.same_device("values", values, "input", input)
    batch, channels = input.shape[:2]
    if indices.shape[0] != batch:
        raise ValueError(f"indices: expected shape ({batch}, P) to go with input, got {_checks.shape(indices)}")
    if values.shape != (batch, channels, indices.shape[1]):
        raise ValueError(
            f"values: expected shape ({batch}, {channels}, {indices.shape[1]}) to go with input and indices, "
            f"got {_checks.shape(values)}"
        )
    out = _registry.call(torch.ops.segops.point_scatter, input, indices, values)
    return _checks.narrowed(out, input)


def _fake(input: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    _, indices, values = inputs
    ctx.size = values.shape
    ctx.save_for_backward(indices)


def _backward(ctx, grad: Tensor):
    (indices,) = ctx.saved_tensors
    need_input, _, need_values = ctx.needs_input_grad
    grad_input = torch.ops.segops.point_scatter(grad, indices, grad.new_zeros(ctx.size)) if need_input else None
    return grad_input, None, torch.ops.segops.point_scatter_backward(grad, indices) if need_values else None


def _fake_backward(grad: Tensor, indices: Tensor) -> Tensor:
    return grad.new_empty(*grad.shape[:2], indices.shape[1])


_registry.register(
    "point_scatter(Tensor input, Tensor indices, Tensor values) -> Tensor",
    file="point_scatter",
    reference=reference.point_scatter,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1, 2),
)
_registry.register(
    "point_scatter_backward(Tensor grad, Tensor indices) -> Tensor",
    file="point_scatter",
    reference=reference.point_scatter_backward,
    fake=_fake_backward,
    batch=(0, 1),
)
