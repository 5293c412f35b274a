"""segops.psa_mask: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import psa_mask as reference
from .psa import MaskSize, _masks

MODES = ("collect", "distribute")


def psa_mask(input: Tensor, mode: str, mask_size: MaskSize = None) -> Tensor:
    r"""The masks of point-wise spatial attention as a matrix of all sources and receivers.

    Of Zhao et al., *PSANet: Point-wise Spatial Attention Network for Scene Parsing*, 2018; what mmcv and semseg call by
    this name, for code that wants the matrix itself. :func:`segops.psa_collect` and
    :func:`segops.psa_distribute` multiply by it without making it. For the index rule see there.

    Args:
        input: ``(N, M_h * M_w, H, W)``, a mask at every position; float64, float32, bfloat16 or float16.
        mode: ``"collect"``, where masks lie at the receivers, or ``"distribute"``, where they lie at the sources (0 and
            1 in the published operators).
        mask_size: :math:`(M_h, M_w)`, or one number for both, odd; ``None`` (default) is ``(2 H - 1, 2 W - 1)``.

    Returns:
        ``(N, H * W, H, W)`` in the dtype of ``input`` (float32 inside autocast), contiguous: at ``[n, s, y, x]`` the
        weight of source s, numbered row by row, at receiver (y, x); 0 outside of the mask.

    Raises:
        TypeError: for what is no dense floating-point tensor, or a ``mask_size`` that is no integer.
        ValueError: for another mode, an even mask, channels that do not fit the mask, or no positions.

    Example:
        >>> import torch, segops
        >>> segops.psa_mask(torch.arange(6.0).view(1, 3, 1, 2), "collect", (1, 3)).view(2, 2)
        tensor([[2., 1.],
                [4., 3.]])
    """
    _checks.logit_map("input", input)
    _checks.choice("mode", mode, MODES)
    rows, columns = _masks(input, mask_size, "input")
    wide = _checks.widened(input)
    return _checks.narrowed(_registry.call(torch.ops.segops.psa_mask, wide, mode, rows, columns), input)


def _fake(input: Tensor, mode: str, mask_height: int, mask_width: int) -> Tensor:
    n, _, height, width = input.shape
    return input.new_empty(n, height * width, height, width)


def _setup_context(ctx, inputs, output) -> None:
    _, *ctx.options = inputs


def _backward(ctx, grad: Tensor):
    return torch.ops.segops.psa_mask_backward(grad, *ctx.options), None, None, None


def _fake_backward(grad: Tensor, mode: str, mask_height: int, mask_width: int) -> Tensor:
    n, _, height, width = grad.shape
    return grad.new_empty(n, mask_height * mask_width, height, width)


_registry.register(
    "psa_mask(Tensor input, str mode, int mask_height, int mask_width) -> Tensor",
    file="psa_mask",
    reference=reference.psa_mask,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0,),
)
_registry.register(
    "psa_mask_backward(Tensor grad, str mode, int mask_height, int mask_width) -> Tensor",
    file="psa_mask",
    reference=reference.psa_mask_backward,
    fake=_fake_backward,
    batch=(0,),
)
