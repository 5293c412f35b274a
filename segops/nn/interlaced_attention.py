"""segops.nn.InterlacedAttention: the interlaced self-attention module, both relations with their projections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import interlaced_attention


def _projection(from_channels: int, to_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(from_channels, to_channels, 1, bias=False), nn.BatchNorm2d(to_channels), nn.ReLU(inplace=True)
    )


class Relation(nn.Module):
    """One of the two attentions: two layers for queries and two for keys, a bare one for values, one for the result."""

    def __init__(self, channels: int, key_channels: int, relation: str, down_factor: Sequence[int]):
        super().__init__()
        self.relation, self.down_factor = relation, tuple(down_factor)
        self.query = nn.Sequential(_projection(channels, key_channels), _projection(key_channels, key_channels))
        self.key = nn.Sequential(_projection(channels, key_channels), _projection(key_channels, key_channels))
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.output = _projection(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (N, C, H, W) to the same."""
        context = interlaced_attention(
            self.query(x), self.key(x), self.value(x), relation=self.relation, down_factor=self.down_factor
        )
        return self.output(context)

    def extra_repr(self) -> str:
        return f"relation={self.relation!r}, down_factor={self.down_factor}"


class InterlacedAttention(nn.Module):
    r"""Interlaced sparse self-attention, the module of ISANet around :func:`segops.interlaced_attention`.

    Huang et al., *Interlaced Sparse Self-Attention for Semantic Segmentation*, 2019. The global relation, on its result
    the local one, each with projections of its own and no residual; then ``[x, context]`` is joined by a 1x1
    convolution. Every convolution but those of the values has batch normalisation and ReLU behind it, and none a bias.
    Initialised as in the authors' code, which leaves PyTorch's defaults.

    A map whose size is no multiple of ``down_factor`` is padded with zeros, half of them (rounded down) at the top and
    left, before it is projected: as published, the padding takes part in both relations and in the statistics of the
    batch normalisation. ``mask_padding=True`` lets only pixels take part.

    Args:
        channels: C of input, values and output; 512 in the paper.
        key_channels: of queries and keys. Default half of ``channels``, as in the paper.
        down_factor: rows and columns of a block, or one number for both. Default 8, the paper's.
        mask_padding: no padding takes part. Default ``False``, as published.
        dropout: of whole channels, at the end. Default 0.05, the authors'.

    Shape:
        ``(N, C, H, W)`` to the same.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.InterlacedAttention(512)
        >>> sum(p.numel() for p in layer.parameters())  # as published
        2366464
        >>> small = segops.nn.InterlacedAttention(16, down_factor=4)
        >>> small(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        *,
        down_factor: int | Sequence[int] = 8,
        mask_padding: bool = False,
        dropout: float = 0.05,
    ):
        super().__init__()
        for name, number in (("channels", channels), ("key_channels", key_channels)):
            if number is not None and _checks.count(name, number) == 0:
                raise ValueError(f"{name}: expected at least 1, got 0")
        if not 0 <= _checks.finite("dropout", dropout) <= 1:
            raise ValueError(f"dropout: expected a number from 0 to 1, got {dropout}")
        self.channels, self.mask_padding = channels, bool(mask_padding)
        self.down_factor = _checks.pair("down_factor", down_factor, 1)
        keys = max(1, channels // 2) if key_channels is None else key_channels
        self.global_relation = Relation(channels, keys, "global", self.down_factor)
        self.local_relation = Relation(channels, keys, "local", self.down_factor)
        self.join = nn.Sequential(_projection(2 * channels, channels), nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Let every pixel of ``x`` (N, C, H, W) see every other."""
        _checks.floating("x", _checks.tensor("x", x, 4, "(N, C, H, W)"))
        if x.shape[1] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels, got shape {_checks.shape(x)}")
        (height, width), (rows, columns) = x.shape[2:], self.down_factor
        down, across = (0, 0) if self.mask_padding else (-height % rows, -width % columns)
        top, left = down // 2, across // 2
        context = nn.functional.pad(x, (left, across - left, top, down - top))
        context = self.local_relation(self.global_relation(context))[:, :, top : top + height, left : left + width]
        return self.join(torch.cat([x, context], 1))

    def extra_repr(self) -> str:
        return f"{self.channels}, mask_padding={self.mask_padding}"
