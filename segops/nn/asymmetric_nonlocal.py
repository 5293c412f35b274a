"""segops.nn.APNB and segops.nn.AFNB: the two blocks of asymmetric non-local networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import asymmetric_nonlocal
from ..ops.pyramid_pool import Sizes, _grids


class _Asymmetric(nn.Module):
    """Attention of the queries of one map to the pyramid of another, joined with the first: figure 3 of the paper."""

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int | None,
        sizes: Sizes,
        dropout: float,
        relu: bool,
    ):
        super().__init__()
        out = high_channels if out_channels is None else out_channels
        counts = {"key_channels": key_channels, "value_channels": value_channels, "out_channels": out}
        for name, number in counts.items():
            _at_least_one(name, number)
        _grids(sizes)
        if not 0 <= _checks.finite("dropout", dropout) <= 1:
            raise ValueError(f"dropout: expected a number from 0 to 1, got {dropout}")
        self.sizes = tuple(sizes)
        self.key = _projection(low_channels, key_channels)
        self.value = nn.Conv2d(low_channels, value_channels, 1)
        self.context = nn.Conv2d(value_channels, high_channels, 1)  # W of the paper
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]
        layers = [nn.Conv2d(2 * high_channels, out, 1), nn.BatchNorm2d(out), *([nn.ReLU()] if relu else [])]
        self.fuse = nn.Sequential(*layers, nn.Dropout2d(dropout))

    def _joined(self, query: Tensor, key: Tensor, low: Tensor, high: Tensor) -> Tensor:
        attended = asymmetric_nonlocal(query, key, self.value(low), sizes=self.sizes)
        return self.fuse(torch.cat([self.context(attended), high], 1))

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


def _at_least_one(name: str, number: int) -> None:
    if _checks.count(name, number) == 0:
        raise ValueError(f"{name}: expected at least 1, got 0")


def _projection(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU())


def _map(name: str, x: Tensor, channels: int) -> None:
    _checks.tensor(name, x, 4, "(N, C, H, W)")
    if x.shape[1] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got shape {_checks.shape(x)}")


class APNB(_Asymmetric):
    r"""Asymmetric pyramid non-local block: a map attends to the averages of its own pyramid.

    Zhu et al., *Asymmetric Non-local Neural Networks for Semantic Segmentation*, 2019, section 3.3. A 1x1 convolution
    with batch normalisation and ReLU gives queries and keys, one for both; another convolution gives values;
    :func:`segops.asymmetric_nonlocal` with scale ``key_channels**-0.5``; a convolution back to ``channels``, which
    starts at **zero**; its result and the input concatenated, 1x1 convolution, batch normalisation, ReLU, dropout.
    All convolutions have a bias.

    Args:
        channels: of the input, 512 in the paper. At its widths the block has 920,576 parameters.
        key_channels: of queries and keys. Default 256.
        value_channels: of values. Default 256.
        out_channels: of the output. Default: ``channels``.
        sizes: of the pyramid's levels. Default (1, 3, 6, 8), 110 keys.
        dropout: chance that a channel of the output is dropped in training. Default 0.05.

    Shape:
        ``(N, channels, H, W)`` to ``(N, out_channels, H, W)``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> block = segops.nn.APNB(16, 8, 8)
        >>> block(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    def __init__(
        self,
        channels: int,
        key_channels: int = 256,
        value_channels: int = 256,
        *,
        out_channels: int | None = None,
        sizes: Sizes = (1, 3, 6, 8),
        dropout: float = 0.05,
    ):
        _at_least_one("channels", channels)
        super().__init__(channels, channels, key_channels, value_channels, out_channels, sizes, dropout, relu=True)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``x`` (N, channels, H, W)."""
        _map("x", x, self.channels)
        key = self.key(x)
        return self._joined(key, key, x, x)


class AFNB(_Asymmetric):
    r"""Asymmetric fusion non-local block: the map of a late stage attends to the pyramid of an earlier one.

    Zhu et al., *Asymmetric Non-local Neural Networks for Semantic Segmentation*, 2019, section 3.4. As
    :class:`APNB`, but keys and values come from ``low`` and queries, by a convolution of their own, from ``high``; and
    no ReLU follows the last batch normalisation.

    Args:
        low_channels: of the earlier map, 1024 in the paper. At its widths the block has 9,971,456 parameters.
        high_channels: of the later map, 2048 in the paper.
        key_channels: of queries and keys. Default 256.
        value_channels: of values. Default 256.
        out_channels: of the output. Default: ``high_channels``.
        sizes: of the pyramid's levels. Default (1, 3, 6, 8), 110 keys.
        dropout: chance that a channel of the output is dropped in training. Default 0.05.

    Shape:
        ``(N, low_channels, H', W')`` and ``(N, high_channels, H, W)`` to ``(N, out_channels, H, W)``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> block = segops.nn.AFNB(8, 16, 4, 4)
        >>> block(torch.randn(2, 8, 9, 9), torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 16, 9, 9])
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        key_channels: int = 256,
        value_channels: int = 256,
        *,
        out_channels: int | None = None,
        sizes: Sizes = (1, 3, 6, 8),
        dropout: float = 0.05,
    ):
        _at_least_one("low_channels", low_channels)
        _at_least_one("high_channels", high_channels)
        super().__init__(
            low_channels, high_channels, key_channels, value_channels, out_channels, sizes, dropout, relu=False
        )
        self.query = _projection(high_channels, key_channels)
        self.low_channels, self.high_channels = low_channels, high_channels

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Fuse ``low`` (N, low_channels, H', W') into ``high`` (N, high_channels, H, W)."""
        _map("low", low, self.low_channels)
        _map("high", high, self.high_channels)
        return self._joined(self.query(high), self.key(low), low, high)
