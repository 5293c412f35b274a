"""segops.nn.NonLocal: the non-local block, non-local attention as a layer with parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from ..ops import nonlocal_attention
from ..ops.nonlocal_attention import MODES


class NonLocal(nn.Module):
    r"""The non-local block: ``x`` plus a projection of what every pixel gathers from all pixels.

    Wang et al., *Non-local Neural Networks*, 2018, section 3.3: 1 x 1 convolutions ``theta``, ``phi`` and ``g`` make
    queries, keys and values with ``in_channels // reduction`` channels, :func:`segops.nonlocal_attention` joins them,
    and the 1 x 1 convolution ``conv_out`` brings the result back to ``in_channels``. ``conv_out`` starts at 0 (with
    ``norm_layer`` that layer's weight does), so the block is the identity at first; the other weights start as normal
    numbers of deviation 0.01, as published.

    Args:
        in_channels: C.
        reduction: 2 by default, as in the paper.
        mode: the pairwise function, see :func:`segops.nonlocal_attention`. ``"gaussian"`` has no ``theta`` and
            ``phi``: ``x`` is query and key. ``"concatenation"`` has ``concat_project`` besides, w_f of the paper.
        use_scale: ``True`` (default, as in mmcv) divides the energies of ``"embedded_gaussian"`` by the root of the
            queries' channels; ``False`` is the paper. The other modes are never scaled.
        sub_sample: a 2 x 2 max pooling of keys and values, the paper's sub-sampling trick. Default ``False``.
        norm_layer: made with ``in_channels``, comes after ``conv_out``; the paper has ``nn.BatchNorm2d``. Default none.

    Parameters have mmcv's names without its ``.conv`` (``theta.weight`` is ``theta.conv.weight`` there, and with
    ``sub_sample`` ``phi.weight`` is ``phi.0.conv.weight``).

    Shape:
        ``(N, C, H, W)`` to the same; with ``sub_sample`` H and W are at least 2.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> layer = segops.nn.NonLocal(16, sub_sample=True)
        >>> x = torch.randn(1, 16, 6, 5)
        >>> torch.equal(layer(x), x)
        True
        >>> layer
        NonLocal(
          16, reduction=2, mode=embedded_gaussian, use_scale=True, sub_sample=True
          (g): Conv2d(16, 8, kernel_size=(1, 1), stride=(1, 1))
          (conv_out): Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1))
          (norm): Identity()
          (theta): Conv2d(16, 8, kernel_size=(1, 1), stride=(1, 1))
          (phi): Conv2d(16, 8, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    def __init__(
        self,
        in_channels: int,
        *,
        reduction: int = 2,
        mode: str = "embedded_gaussian",
        use_scale: bool = True,
        sub_sample: bool = False,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.in_channels = _checks.count("in_channels", in_channels)
        self.reduction = _checks.count("reduction", reduction)
        if not 1 <= self.reduction <= self.in_channels:
            raise ValueError(f"reduction: expected 1 to in_channels = {self.in_channels}, got {reduction}")
        self.mode = _checks.choice("mode", mode, MODES)
        self.use_scale, self.sub_sample = bool(use_scale), bool(sub_sample)
        inner = self.in_channels // self.reduction
        self.g = nn.Conv2d(self.in_channels, inner, 1)
        self.conv_out = nn.Conv2d(inner, self.in_channels, 1)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(self.in_channels)
        if mode != "gaussian":
            self.theta = nn.Conv2d(self.in_channels, inner, 1)
            self.phi = nn.Conv2d(self.in_channels, inner, 1)
        if mode == "concatenation":
            self.concat_project = nn.Conv2d(2 * inner, 1, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: the identity."""
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        last = self.conv_out if isinstance(self.norm, nn.Identity) else self.norm
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Let every pixel of ``x`` (N, C, H, W) see all of them."""
        _checks.pixels("x", _checks.tensor("x", x, 4, "(N, C, H, W)"))
        least = 2 if self.sub_sample else 1
        if x.shape[1] != self.in_channels or min(x.shape[2:]) < least:
            raise ValueError(
                f"x: expected {self.in_channels} channels and at least {least} x {least} pixels, "
                f"got shape {_checks.shape(x)}"
            )
        query, key = (x, x) if self.mode == "gaussian" else (self.theta(x), self.phi(x))
        key, value = self._sampled(key), self._sampled(self.g(x)).to(query.dtype)  # autocast leaves x alone
        if self.mode == "concatenation":
            of_query, of_key = self.concat_project.weight.chunk(2, 1)
            query, key = F.conv2d(query, of_query), F.conv2d(key, of_key)
        scale = query.shape[1] ** -0.5 if self.use_scale and self.mode == "embedded_gaussian" else None
        context = nonlocal_attention(query, key, value, mode=self.mode, scale=scale)
        return x + self.norm(self.conv_out(context.to(value.dtype)))

    def _sampled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if self.sub_sample else x

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, reduction={self.reduction}, mode={self.mode}, use_scale={self.use_scale}, "
            f"sub_sample={self.sub_sample}"
        )
