"""Small data that ships with segops: the colours of labels, and a coarse labelling of one photo for the demo."""

from __future__ import annotations

import colorsys

import numpy as np

IGNORE = 255  # the label of pixels that have none
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of colours from 0 to 1, red, green, blue, and their standard deviations
IMAGENET_STD = (0.229, 0.224, 0.225)

#: The labels of ``astronaut_labels.png``, a coarse labelling of ``skimage.data.astronaut()``.
ASTRONAUT = ("background", "flag", "shuttle model", "helmet", "suit", "head")

_FIRST = (0x8A8D99, 0xD64550, 0x2F86D1, 0x8B4FC4, 0xF08C1E, 0x2FA866, 0xE6C229, 0x1FB5B5, 0xE377B8, 0x7A5230)


def palette(labels: int) -> np.ndarray:
    """The colours of labels 0, 1, ...: uint8 (labels, 3). Ten chosen ones, then hues a golden ratio apart."""
    colours = [(c >> 16, c >> 8 & 255, c & 255) for c in _FIRST[:labels]]
    for i in range(len(_FIRST), labels):
        rgb = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.65 + 0.3 * (i % 3) / 2)
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return np.array(colours, np.uint8).reshape(-1, 3)
