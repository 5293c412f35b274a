"""segops.nn.Encoding: the encoding layer with its codewords."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import encoding


class Encoding(nn.Module):
    r"""The encoding layer, :func:`segops.encoding` with learnable codewords and scales.

    Zhang et al., *Context Encoding for Semantic Segmentation*, 2018. Initialised as published: codewords uniform within
    :math:`\pm 1 / \sqrt{K D}`, scales uniform in (-1, 0), negative because the sign is the scale's own.

    Args:
        channels: D.
        num_codes: K; EncNet has 32.

    Shape:
        ``(N, D, H, W)`` or ``(N, D, P)`` to ``(N, K, D)``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.Encoding(16, num_codes=4)
        >>> layer(torch.randn(2, 16, 9, 9)).shape
        torch.Size([2, 4, 16])
    """

    def __init__(self, channels: int, num_codes: int = 32):
        super().__init__()
        for name, number in (("channels", channels), ("num_codes", num_codes)):
            if _checks.count(name, number) == 0:
                raise ValueError(f"{name}: expected at least 1, got 0")
        bound = (num_codes * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` (N, D, H, W) or (N, D, P)."""
        return encoding(x, self.codewords, self.scale)

    def extra_repr(self) -> str:
        return f"{self.codewords.shape[1]}, num_codes={self.codewords.shape[0]}"
