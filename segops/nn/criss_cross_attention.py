"""segops.nn.CrissCrossAttention: recurrent criss-cross attention as a layer with parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import criss_cross_attention


class CrissCrossAttention(nn.Module):
    r"""Recurrent criss-cross attention, the head of CCNet.

    Huang et al., *CCNet: Criss-Cross Attention for Semantic Segmentation*, 2019. One pass projects ``x`` to queries,
    keys and values and returns ``gamma * criss_cross_attention(query, key, value) + x``. Passes share their weights;
    after two, every pixel has seen every other. ``gamma`` starts at 0: the layer is the identity at first. Parameters
    have the names of the published code, so that its checkpoints load.

    Args:
        in_channels: C.
        recurrence: passes, R in the paper; may be changed later. Default 2.
        reduction: queries and keys have ``in_channels // reduction`` channels. Default 8.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.CrissCrossAttention(16)
        >>> x = torch.randn(1, 16, 6, 5)
        >>> torch.equal(layer(x), x)
        True
        >>> sorted(layer.state_dict())[:3]
        ['gamma', 'key_conv.bias', 'key_conv.weight']
    """

    def __init__(self, in_channels: int, *, recurrence: int = 2, reduction: int = 8):
        super().__init__()
        self.in_channels = _checks.count("in_channels", in_channels)
        self.recurrence = _checks.count("recurrence", recurrence)
        if self.recurrence == 0:
            raise ValueError("recurrence: expected at least 1, got 0")
        self.reduction = _checks.count("reduction", reduction)
        if not 1 <= self.reduction <= self.in_channels:
            raise ValueError(f"reduction: expected 1 to in_channels = {self.in_channels}, got {reduction}")
        dims = self.in_channels // self.reduction
        self.query_conv = nn.Conv2d(self.in_channels, dims, 1)
        self.key_conv = nn.Conv2d(self.in_channels, dims, 1)
        self.value_conv = nn.Conv2d(self.in_channels, self.in_channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Let every pixel of ``x`` (N, C, H, W) see its row and column, ``recurrence`` times."""
        _checks.floating("x", _checks.tensor("x", x, 4, "(N, C, H, W)"))
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected {self.in_channels} channels, got shape {_checks.shape(x)}")
        for _ in range(self.recurrence):
            context = criss_cross_attention(self.query_conv(x), self.key_conv(x), self.value_conv(x))
            x = self.gamma * context + x
        return x

    def extra_repr(self) -> str:
        return f"{self.in_channels}, recurrence={self.recurrence}, reduction={self.reduction}"
