"""Convolution layers with holes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import _checks
from ..ops import atrous_conv2d


class AtrousConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` on :func:`segops.atrous_conv2d`: the same arguments, parameters, ``state_dict`` and results.

    Args:
        *args, **kwargs: those of ``torch.nn.Conv2d``, with its defaults: ``padding=0``, for instance.

    Shape:
        ``(N, C, H, W)`` or ``(C, H, W)`` to ``(N, K, H', W')`` or ``(K, H', W')``.

    Raises:
        TypeError, ValueError: as ``torch.nn.Conv2d`` does, and for inputs as the operator does.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.AtrousConv2d(8, 4, 3, padding=12, dilation=12)
        >>> plain = torch.nn.Conv2d(8, 4, 3, padding=12, dilation=12)
        >>> plain.load_state_dict(layer.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(1, 8, 33, 33)
        >>> torch.testing.assert_close(layer(x), plain(x))
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _checks.dense("input", input, "(N, C, H, W) or (C, H, W)")
        batch = input if input.dim() != 3 else input[None]
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            batch = nn.functional.pad(batch, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        elif padding == "valid":
            padding = 0
        out = atrous_conv2d(
            batch, weight, bias, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups
        )
        return out if input.dim() != 3 else out[0]


class AtrousSeparableConv2d(nn.Module):
    """Depthwise convolution with holes, then 1 x 1 convolution: the atrous separable convolution of Chen et al.,
    *Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation*, 2018 (DeepLab v3+).

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: of the depthwise convolution, odd. Default 3.
        dilation: its rate. Default 1. Outputs have the size of the input.
        bias: of the 1 x 1 convolution; the depthwise one has none. Default ``False``: normalisation follows.

    Shape:
        ``(N, C, H, W)`` to ``(N, K, H, W)``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.AtrousSeparableConv2d(8, 4, dilation=12)
        >>> layer(torch.randn(2, 8, 33, 33)).shape
        torch.Size([2, 4, 33, 33])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, dilation: int = 1, bias: bool = False
    ):
        super().__init__()
        if _checks.integer("kernel_size", kernel_size) < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd integer >= 1, got {kernel_size}")
        self.depthwise = AtrousConv2d(
            in_channels, in_channels, kernel_size, padding="same", dilation=dilation, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to (N, K, H, W)."""
        return self.pointwise(self.depthwise(x))
