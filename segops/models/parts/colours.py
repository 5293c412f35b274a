"""Colours of a photo, back from what networks want."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ... import _checks


class Colours(nn.Module):
    """A normalised image with its colours from 0 to 255 again, as the CRFs look at them.

    Args:
        mean, std: what was taken out of the image, from 0 to 1, and by what it was divided; three numbers each.

    Shape:
        ``(N, 3, H, W)`` to the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(_checks.positives(name, values, 3))
            self.register_buffer(name, numbers.view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return 255 * (image * self.std + self.mean)
