"""segops.psa_collect and segops.psa_distribute: checks and registration; the work is in the layers named psa."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import psa as reference

MaskSize = int | Sequence[int] | None


def psa_collect(
    value: Tensor, attention: Tensor, mask_size: MaskSize = None, softmax: bool = True, compact: bool = False
) -> Tensor:
    r"""Point-wise spatial attention, collecting: every position says how much it takes from each of the others.

    One of the two branches of Zhao et al., *PSANet: Point-wise Spatial Attention Network for Scene Parsing*, 2018. With
    the weights :math:`m_{st}` of source s at receiver t, the output is :math:`z_t = \sum_s x_s\, m_{st}`. ``attention``
    has at every **receiver** a mask :math:`M_h \times M_w` centred on it: the source that lies
    :math:`(i - \lfloor M_h / 2 \rfloor, j - \lfloor M_w / 2 \rfloor)` rows and columns from it has the weight in
    channel :math:`i M_w + j`. Sources outside of the mask have weight 0, or logit 0 if there is a softmax. The matrix
    of all sources and receivers never exists; see :func:`segops.psa_mask` for it.

    Args:
        value: ``(N, C, H, W)``; float64, float32, bfloat16 or float16 (summed in float32).
        attention: ``(N, M_h * M_w, H, W)``, ``(N, H * W, H, W)`` if compact; of the dtype of ``value``, or
            both are cast to that of the sums.
        mask_size: :math:`(M_h, M_w)`, or one number for both, odd. ``None`` (default): ``(2 H - 1, 2 W - 1)``, the
            over-complete mask in which every position has a weight. May be larger.
        softmax: normalise the weights of each receiver over **all sources** (default); those outside of the mask take
            part with logit 0, as published. ``False``: the weights as they are.
        compact: ``True``: channel s of ``attention`` at receiver t holds :math:`m_{st}`, with positions numbered row by
            row. Default ``False``. ``mask_size`` is then to be ``None``.

    Returns:
        The shape and dtype of ``value`` (float32 inside autocast), contiguous. Divide by a normalisation factor
        yourself, as ``segops.nn.PSA`` does.

    Raises:
        TypeError: for what is no dense floating-point tensor, or a ``mask_size`` that is no integer.
        ValueError: for shapes or devices that do not fit, an even mask, or no channels or positions.

    Example:
        >>> import torch, segops
        >>> value, attention = torch.rand(1, 3, 4, 5), torch.zeros(1, 7 * 9, 4, 5)
        >>> torch.allclose(segops.psa_collect(value, attention), value.mean((2, 3), keepdim=True).expand_as(value))
        True
    """
    return _attend(value, attention, "collect", mask_size, softmax, compact)


def psa_distribute(
    value: Tensor, attention: Tensor, mask_size: MaskSize = None, softmax: bool = True, compact: bool = False
) -> Tensor:
    r"""Point-wise spatial attention, distributing: every position says how much it gives to each of the others.

    The other branch of Zhao et al., *PSANet*, 2018; it differs from :func:`psa_collect` in whose the mask is:
    ``attention`` has at every **source** a mask centred on it, and the receiver that lies
    :math:`(i - \lfloor M_h / 2 \rfloor, j - \lfloor M_w / 2 \rfloor)` from it has the weight in channel
    :math:`i M_w + j`. The softmax is over the sources here too, so it is over no position's own mask. Without softmax,
    and for the same attention, the matrices of the two are each other's transposes.

    Args:
        value: ``(N, C, H, W)``; float64, float32, bfloat16 or float16 (summed in float32).
        attention: ``(N, M_h * M_w, H, W)``, ``(N, H * W, H, W)`` if compact; of the dtype of ``value``, or
            both are cast to that of the sums.
        mask_size: as in :func:`psa_collect`; ``None`` (default) is over-complete.
        softmax: normalise the weights of each receiver over all sources (default), outside of a mask with logit 0.
        compact: ``True``: channel t of ``attention`` at source s holds :math:`m_{st}`, as semseg has it. Default
            ``False``.

    Returns:
        The shape and dtype of ``value`` (float32 inside autocast), contiguous.

    Raises:
        TypeError, ValueError: as :func:`psa_collect`.

    Example:
        >>> import torch, segops
        >>> value, attention = torch.rand(1, 3, 4, 5), torch.rand(1, 3 * 3, 4, 5)
        >>> segops.psa_distribute(value, attention, 3).shape
        torch.Size([1, 3, 4, 5])
    """
    return _attend(value, attention, "distribute", mask_size, softmax, compact)


def _mask_sides(mask_size: MaskSize, height: int, width: int, odd: bool = True) -> tuple[int, int]:
    """Height and width of a mask, odd numbers; ``None`` is over-complete for a map of this size."""
    if mask_size is None:
        return 2 * height - 1, 2 * width - 1
    rows, columns = _checks.pair("mask_size", mask_size, 0)
    if odd and (rows % 2 == 0 or columns % 2 == 0):
        raise ValueError(f"mask_size: expected odd numbers, got {mask_size}")
    return rows, columns


def _masks(attention: Tensor, mask_size: MaskSize, name: str = "attention") -> tuple[int, int]:
    """The sides of the masks in an attention map (N, M_h M_w, H, W)."""
    rows, columns = _mask_sides(mask_size, attention.shape[2], attention.shape[3])
    if attention.shape[1] != rows * columns:
        raise ValueError(
            f"{name}: expected {rows} * {columns} = {rows * columns} channels for mask_size, "
            f"got shape {_checks.shape(attention)}"
        )
    return rows, columns


def _attend(value: Tensor, attention: Tensor, mode: str, mask_size: MaskSize, softmax: bool, compact: bool) -> Tensor:
    _checks.logit_map("value", value)
    _checks.floating("attention", _checks.tensor("attention", attention, 4, "(N, M_h * M_w, H, W)"))
    _checks.same_device("attention", attention, "value", value)
    n, _, height, width = value.shape
    if attention.shape[0] != n or attention.shape[2:] != value.shape[2:]:
        raise ValueError(
            f"attention: expected shape ({n}, M_h * M_w, {height}, {width}) to go with value, "
            f"got {_checks.shape(attention)}"
        )
    if not compact:
        rows, columns = _masks(attention, mask_size)
    elif mask_size is not None:
        raise ValueError(f"mask_size: expected None with compact attention, got {mask_size}")
    elif attention.shape[1] != height * width:
        raise ValueError(
            f"attention: expected {height} * {width} = {height * width} channels in compact form, "
            f"got shape {_checks.shape(attention)}"
        )
    else:
        rows = columns = 0
    dtype = value.dtype if attention.dtype == value.dtype else _checks.sum_dtype(value)
    args = value.to(dtype), attention.to(dtype), mode, rows, columns, bool(compact), bool(softmax)
    return _checks.narrowed(_registry.call(torch.ops.segops.psa, *args)[0], value)


def _fake(
    value: Tensor, attention: Tensor, mode: str, mask_height: int, mask_width: int, compact: bool, softmax: bool
) -> tuple[Tensor, Tensor]:
    n, _, height, width = value.shape
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    return out, value.new_empty(n, 2, height * width if softmax else 0, dtype=_checks.sum_dtype(value))


def _setup_context(ctx, inputs, output) -> None:
    value, attention, *ctx.options = inputs
    ctx.save_for_backward(value, attention, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _grad_stats: Tensor):
    gradients = torch.ops.segops.psa_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *gradients, None, None, None, None, None


def _fake_backward(grad, value, attention, *rest) -> tuple[Tensor, Tensor]:
    like = torch.contiguous_format
    return torch.empty_like(value, memory_format=like), torch.empty_like(attention, memory_format=like)


_OPTIONS = "str mode, int mask_height, int mask_width, bool compact, bool softmax"
_registry.register(
    f"psa(Tensor value, Tensor attention, {_OPTIONS}) -> (Tensor, Tensor)",
    file="psa",
    reference=reference.psa,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_registry.register(
    "psa_backward(Tensor grad, Tensor value, Tensor attention, Tensor out, Tensor stats, "
    f"{_OPTIONS}) -> (Tensor, Tensor)",
    file="psa",
    reference=reference.psa_backward,
    fake=_fake_backward,
)
