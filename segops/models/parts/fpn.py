"""The feature pyramid, and Panoptic FPN's head that sums its levels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ... import _checks
from ..model import resize


class FeaturePyramid(nn.Module):
    """The last four features of a trunk, each with what the coarser ones know.

    Lin et al., *Feature Pyramid Networks for Object Detection*, 2017: 1 x 1 convolutions bring all to one width, coarse
    maps are added to finer ones (nearest neighbour), and a 3 x 3 convolution gives the level. No normalisation.

    Args:
        trunk: image to a list of features, finest first, with ``channels``.
        channels: of every level.

    Shape:
        an image to a list of four maps ``(N, channels, h, w)``, finest first.
    """

    def __init__(self, trunk: Any, channels: int = 256):
        super().__init__()
        self.trunk = trunk
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in trunk.channels[-4:])
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in self.lateral)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The levels of an image."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, self.trunk(image)[-4:], strict=True)]
        for i in (2, 1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[2:], mode="nearest")
        return [output(x) for output, x in zip(self.output, levels, strict=True)]


class SumHead(nn.Module):
    """Each level through 3 x 3 convolutions, one for each doubling to the finest one's size, at least one; their sum.

    Args:
        in_channels: of the levels.
        num_classes: K.
        channels: of the convolutions, a multiple of 32: GroupNorm has 32 groups.

    Raises:
        TypeError, ValueError: for numbers that do not fit.

    Shape:
        four levels, finest first, to ``(N, K, h, w)``, h and w of the first.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 128):
        super().__init__()
        _checks.count("num_classes", num_classes, 1)
        if _checks.count("channels", channels, 1) % 32:
            raise ValueError(f"channels: expected a multiple of 32, got {channels}")

        def block(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.GroupNorm(32, channels), nn.ReLU()
            )

        self.levels = nn.ModuleList(
            nn.ModuleList(block(in_channels if i == 0 else channels) for i in range(max(1, doublings)))
            for doublings in range(4)
        )
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> Tensor:
        """The levels to logits."""
        sizes = [x.shape[2:] for x in levels]
        summands = []
        for doublings, (blocks, x) in enumerate(zip(self.levels, levels, strict=True)):
            for i, block in enumerate(blocks.children()):
                x = block(x)
                if doublings:  # a doubling, but where a size is odd
                    x = resize(x, sizes[doublings - 1 - i])
            summands.append(x)
        return self.predictor(sum(summands))
