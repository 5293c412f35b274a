"""segops.nn.EMAttention: the EMA unit, and the moving average of its bases."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import em_attention

CONVENTIONS = {"emanet": (0.9, "add"), "mmseg": (0.1, "clamp")}  # momentum by default, eps_mode


class EMAttention(nn.Module):
    r"""The expectation-maximization attention unit, a residual block around :func:`segops.em_attention`.

    Li et al., *Expectation-Maximization Attention Networks for Semantic Segmentation*, 2019, figure 2: 1x1 convolution,
    attention, ReLU, 1x1 convolution with batch normalisation, and the input added before a last ReLU. The iterations
    start from ``bases``, a buffer that follows the bases of the training images as a moving average: batches are too
    small to fit it by gradients, which is why none pass the iterations as published.

    Two conventions are in use for that average, of the mean over the images of **all processes** if
    ``torch.distributed`` is initialised:

    - ``"emanet"``, the authors': ``bases = momentum * bases + (1 - momentum) * mean``, 0.9 by default and so the part
      that is **kept**; not normalised again. It stands outside of the unit, in the training loop: call
      :meth:`update_bases` with the bases that ``forward`` returned. Divisors get 1e-6 added.
    - ``"mmseg"``: ``bases = (1 - momentum) * bases + momentum * mean / |mean|``, 0.1 by default and so the part that is
      **replaced**. ``forward`` does it when training. Divisors are cut off at 1e-12.

    Args:
        channels: C of input and output.
        num_bases: K. Default 64.
        iterations: T, in training and evaluation alike. Default 3.
        convention: ``"emanet"`` (default) or ``"mmseg"``, whose unit has other layers around the same iterations.
        momentum: in the meaning of the convention, from 0 to 1.
        unrolled: let gradients pass all iterations. Default ``False``, as published: the first convolution then never
            gets one, and is frozen so that distributed training does not wait for it.
        bn_momentum: of the batch normalisation. Default 3e-4, the authors'.

    Shape:
        ``(N, C, H, W)`` to the same, and the bases ``(N, C, K)`` of each image.

    Raises:
        TypeError, ValueError: for arguments that do not fit, here and in ``forward``.

    Example:
        >>> import torch, segops
        >>> unit = segops.nn.EMAttention(16, num_bases=4)
        >>> output, bases = unit(torch.randn(2, 16, 9, 9))
        >>> output.sum().backward()  # and a step of the optimizer
        >>> unit.update_bases(bases)
        >>> output.shape, unit.bases.shape
        (torch.Size([2, 16, 9, 9]), torch.Size([1, 16, 4]))
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        num_bases: int = 64,
        *,
        iterations: int = 3,
        convention: str = "emanet",
        momentum: float | None = None,
        unrolled: bool = False,
        bn_momentum: float = 3e-4,
    ):
        super().__init__()
        for name, number in (("channels", channels), ("num_bases", num_bases), ("iterations", iterations)):
            if _checks.count(name, number) == 0:
                raise ValueError(f"{name}: expected at least 1, got 0")
        self.convention = _checks.choice("convention", convention, tuple(CONVENTIONS))
        usual, self.eps_mode = CONVENTIONS[convention]
        self.momentum = usual if momentum is None else _checks.finite("momentum", momentum)
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum: expected a number from 0 to 1, got {momentum}")
        self.iterations, self.unrolled = iterations, bool(unrolled)
        self.conv1 = nn.Conv2d(channels, channels, 1).requires_grad_(self.unrolled)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, momentum=bn_momentum)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, 0, math.sqrt(2 / channels))
        bases = torch.randn(1, channels, num_bases) * math.sqrt(2 / num_bases)
        self.register_buffer("bases", bases / (1e-6 + bases.norm(dim=1, keepdim=True)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Refine ``x`` (N, C, H, W); returns the bases (N, C, K) of each image too."""
        _checks.tensor("x", x, 4, "(N, C, H, W)")
        if x.shape[1] != self.bases.shape[1]:
            raise ValueError(f"x: expected {self.bases.shape[1]} channels, got shape {_checks.shape(x)}")
        start = self.bases.clone() if self.unrolled else self.bases  # an update must not touch what backward needs
        out, bases = em_attention(
            self.conv1(x), start, iterations=self.iterations, unrolled=self.unrolled, eps_mode=self.eps_mode
        )
        if self.training and self.convention == "mmseg":
            self.update_bases(bases)
        return torch.relu(self.norm(self.conv2(torch.relu(out))) + x), bases

    @torch.no_grad()
    def update_bases(self, bases: Tensor) -> None:
        """Let the buffer follow ``bases`` (N, C, K), those of the images of this process; all processes call it."""
        _checks.tensor("bases", bases, 3, "(N, C, K)")
        if bases.shape[1:] != self.bases.shape[1:]:
            raise ValueError(
                f"bases: expected shape (N, {self.bases.shape[1]}, {self.bases.shape[2]}), got {_checks.shape(bases)}"
            )
        total = torch.cat([bases.to(self.bases.dtype).sum(0).flatten(), self.bases.new_tensor([bases.shape[0]])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        if total[-1] == 0:  # no image anywhere
            return
        mean = (total[:-1] / total[-1]).view_as(self.bases)
        if self.convention == "mmseg":
            self.bases.lerp_(nn.functional.normalize(mean, dim=1), self.momentum)
        else:
            self.bases.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)

    def extra_repr(self) -> str:
        return (
            f"num_bases={self.bases.shape[2]}, iterations={self.iterations}, convention={self.convention!r}, "
            f"momentum={self.momentum}, unrolled={self.unrolled}"
        )
