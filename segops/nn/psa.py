"""segops.nn.PSA: the head of PSANet, point-wise spatial attention in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import psa_collect, psa_distribute
from ..ops.psa import MaskSize, _mask_sides

DIRECTIONS = ("collect", "distribute", "both")


class PSA(nn.Module):
    r"""The point-wise spatial attention module of PSANet.

    Zhao et al., *PSANet: Point-wise Spatial Attention Network for Scene Parsing*, 2018. Each branch reduces
    the input with a 1x1 convolution, shrinks it, predicts a mask for every position with two more, and attends: one
    branch with :func:`segops.psa_collect`, the other with :func:`segops.psa_distribute`. A 1x1 convolution takes both
    back to ``in_channels``, and the result is enlarged to the size of the input and **concatenated** to it. Resizing is
    bilinear with ``align_corners=True``. Layers are initialised as PyTorch does, as in the authors' PyTorch code
    (semseg), and parameters have the names they have there, so that its checkpoints load.

    The size of the masks does not depend on that of the input: with the same mask, smaller and larger maps work too.

    Args:
        in_channels: channels of the input. Published: 2048.
        mid_channels: channels of a branch. Default 512.
        direction: ``"both"`` (default, two branches), ``"collect"`` or ``"distribute"``; ``psa_type`` 2, 0 and 1 in
            semseg.
        mask_size: odd, one number or two. Default 59, over-complete for a map of 30 x 30, that of a crop of 465 to 473
            pixels at stride 8 after shrinking. In compact form the size of the shrunken map, odd or not.
        compact: ``True``: masks are numbered by position; the map must then have the size ``mask_size`` after
            shrinking. Default ``False``. Follows semseg, where the distributing branch is the transposed one;
            mmsegmentation agrees with both branches but, with one, transposes for "collect" instead. A checkpoint of
            that kind takes the other ``direction`` here.
        shrink_factor: how many times smaller the map is in which positions attend, :math:`\lfloor (H - 1) / f \rfloor +
            1` rows of H. Default 2; 1 does not resize.
        normalization_factor: what the attention's result is divided by. Default 1, as trained; ``None``: the number of
            entries of a mask.
        softmax: normalise over the sources. Default ``True``, as trained.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, 2 * in_channels, H, W)``, the input first.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.PSA(16, 8, mask_size=9)
        >>> layer(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 32, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int = 512,
        *,
        direction: str = "both",
        mask_size: MaskSize = 59,
        compact: bool = False,
        shrink_factor: int = 2,
        normalization_factor: float | None = 1.0,
        softmax: bool = True,
    ):
        super().__init__()
        self.in_channels = _at_least_one("in_channels", in_channels)
        self.direction = _checks.choice("direction", direction, DIRECTIONS)
        if mask_size is None:
            raise TypeError("mask_size: expected one integer or two, got NoneType")
        self.mask_size = _mask_sides(mask_size, 0, 0, odd=not compact)
        self.compact = bool(compact)
        self.shrink_factor = _at_least_one("shrink_factor", shrink_factor)
        entries = _at_least_one("mask_size", self.mask_size[0] * self.mask_size[1])
        factor = entries if normalization_factor is None else normalization_factor
        self.normalization_factor = _checks.positive("normalization_factor", factor)
        self.softmax = bool(softmax)
        mid = _at_least_one("mid_channels", mid_channels)
        self.reduce, self.attention = _layer(self.in_channels, mid), _predictor(mid, entries)
        if direction == "both":
            self.reduce_p, self.attention_p = _layer(self.in_channels, mid), _predictor(mid, entries)
        self.proj = _layer(2 * mid if direction == "both" else mid, self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (N, in_channels, H, W) and what its positions know of each other, (N, 2 * in_channels, H, W)."""
        _checks.logit_map("x", x)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected {self.in_channels} channels, got shape {_checks.shape(x)}")
        if self.direction == "both":
            branches = [self._branch(x, "collect", self.reduce, self.attention)]
            branches.append(self._branch(x, "distribute", self.reduce_p, self.attention_p))
            out = torch.cat(branches, 1)
        else:
            out = self._branch(x, self.direction, self.reduce, self.attention)
        return torch.cat([x, _resized(self.proj(out), x.shape[2], x.shape[3])], 1)

    def _branch(self, x: Tensor, direction: str, reduce: nn.Module, attention: nn.Module) -> Tensor:
        x = reduce(x)
        height, width = ((size - 1) // self.shrink_factor + 1 for size in x.shape[2:])
        if self.compact and (height, width) != self.mask_size:
            raise ValueError(f"x: expected a map of {self.mask_size} after shrinking, got {(height, width)}")
        x = _resized(x, height, width)
        attend = psa_collect if direction == "collect" else psa_distribute
        mask_size = None if self.compact else self.mask_size
        return attend(x, attention(x), mask_size, self.softmax, self.compact) / self.normalization_factor

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, direction={self.direction!r}, mask_size={self.mask_size}, compact={self.compact}, "
            f"shrink_factor={self.shrink_factor}, normalization_factor={self.normalization_factor}, "
            f"softmax={self.softmax}"
        )


def _at_least_one(name: str, x: int) -> int:
    if _checks.count(name, x) == 0:
        raise ValueError(f"{name}: expected at least 1, got 0")
    return int(x)


def _layer(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _predictor(channels: int, entries: int) -> nn.Sequential:
    return nn.Sequential(*_layer(channels, channels), nn.Conv2d(channels, entries, 1, bias=False))


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2:] == (height, width):
        return x
    return nn.functional.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
