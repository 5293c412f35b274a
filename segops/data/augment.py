"""The usual augmentation of the field: scale jitter, a crop, a mirror, changes of light and colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from . import IMAGENET_MEAN, IMAGENET_STD
from .datasets import resized

TRIES = 10  # crops that are drawn before one with too much of a class is taken
DISTORTION = (0.125, 0.5, 0.5, 0.05)  # SSD's and MMSegmentation's; hue in turns


class Augmentation:
    """Scale jitter, crop, mirror and photometric distortion of a photo and its mask.

    Args:
        crop: rows and columns of what comes out.
        scale: least and largest factor of the sides. Default 0.5 to 2.
        flip: probability of a mirror, left to right. Default 0.5.
        max_class_ratio: a crop with more of one class than this is drawn again, up to ten times (MMSegmentation).
            Default 0.75; 1 takes the first.
        jitter: probability of photometric distortion. Default 0.5.
        distortion: its largest changes of brightness, contrast and saturation, each below 1 (0.5: factors from 0.5 to
            1.5), and of hue, at most 0.5 (half a turn of the colours). Default 0.125, 0.5, 0.5, 0.05.

    Raises:
        ValueError: for options that do not fit.
    """

    def __init__(
        self,
        crop: Sequence[int],
        *,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        max_class_ratio: float = 0.75,
        jitter: float = 0.5,
        distortion: Sequence[float] = DISTORTION,
    ):
        self.crop = _checks.pair("crop", crop, 1)
        self.scale = _checks.positives("scale", list(scale), 2)
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: expected the least first, got {list(scale)}")
        self.flip, self.jitter = _checks.fraction("flip", flip), _checks.fraction("jitter", jitter)
        self.max_class_ratio = _checks.fraction("max_class_ratio", max_class_ratio)
        self.distortion = [_checks.fraction("distortion", x) for x in distortion]
        if len(self.distortion) != 4 or max(self.distortion[:3]) == 1 or self.distortion[3] > 0.5:
            raise ValueError(f"distortion: expected three numbers below 1 and one up to 0.5, got {list(distortion)}")

    def __call__(self, image: Tensor, target: Tensor, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
        """image uint8 (3, H, W) and target uint8 (H, W) to those of a crop; the seed decides everything."""
        rng = np.random.default_rng(tuple(seed))
        factor = np.exp(rng.uniform(*np.log(self.scale)))
        size = [max(1, round(side * factor)) for side in target.shape]
        if size != list(target.shape):
            image, target = resized(image, size), resized(target, size)
        image, target = self._crop(*self._padded(image, target), rng)
        if rng.random() < self.flip:
            image, target = image.flip(-1), target.flip(-1)
        if rng.random() < self.jitter:
            image = photometric(image, rng, self.distortion)
        return image, target

    def _padded(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Below and on the right, to at least the size of a crop: the mean colour, and labels to be ignored."""
        below, right = (max(0, crop - side) for crop, side in zip(self.crop, target.shape, strict=True))
        if below == 0 and right == 0:
            return image, target
        whole = (torch.tensor(IMAGENET_MEAN) * 255).round().byte()[:, None, None].repeat(1, *self._sides(target))
        labels = torch.full(self._sides(target), 255, dtype=torch.uint8)
        height, width = target.shape
        whole[:, :height, :width], labels[:height, :width] = image, target
        return whole, labels

    def _sides(self, target: Tensor) -> tuple[int, int]:
        height, width = (max(crop, side) for crop, side in zip(self.crop, target.shape, strict=True))
        return height, width

    def _crop(self, image: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        height, width = self.crop
        for _ in range(TRIES):
            top = int(rng.integers(target.shape[0] - height + 1))
            left = int(rng.integers(target.shape[1] - width + 1))
            labels = target[top : top + height, left : left + width]
            counts = labels.flatten().bincount(minlength=256)[:255]
            if counts.max() <= self.max_class_ratio * counts.sum() and counts.any():
                break
        return image[:, top : top + height, left : left + width], labels


def photometric(image: Tensor, rng: np.random.Generator, largest: Sequence[float] = DISTORTION) -> Tensor:
    """Brightness, contrast, saturation and hue, each with probability one half, as SSD and MMSegmentation have it."""
    from torchvision.transforms.v2 import functional

    changes: list[tuple[Any, float]] = [
        (functional.adjust_brightness, 1.0),
        (functional.adjust_contrast, 1.0),
        (functional.adjust_saturation, 1.0),
        (functional.adjust_hue, 0.0),
    ]
    for (change, unchanged), most in zip(changes, largest, strict=True):
        if rng.random() < 0.5:
            image = change(image, float(rng.uniform(unchanged - most, unchanged + most)))
    return image


def normalized(image: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to what pretrained trunks want: ImageNet's mean and deviation taken out, in torch's default
    dtype."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(3, 1, 1)
    return image.to(mean.dtype).div(255).sub(mean).div(std)
