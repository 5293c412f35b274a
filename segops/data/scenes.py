"""Drawn street scenes: a data set that needs no download, for first steps and tests."""

from __future__ import annotations

import numpy as np

SCENES = ("sky", "road", "building", "tree", "car", "person")
# Colours of the classes, and how far a scene's own may be from them.
_COLOURS = np.array(
    [(150, 190, 230), (95, 95, 100), (170, 120, 95), (60, 125, 55), (190, 45, 50), (225, 180, 60)], float
)
_SPREAD = 28


def scene(index: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A street: sky over a road, houses, trees, cars and people, with noise and a light that falls off.

    Args:
        index: which one; the same always gives the same.
        size: rows and columns.
        seed: of the whole set.

    Returns:
        The photo, uint8 ``(H, W, 3)``, and its labels, uint8 ``(H, W)``, from 0 to 5 as in ``SCENES``.
    """
    rng = np.random.default_rng((seed, index))
    height, width = size
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    horizon = rng.uniform(0.45, 0.6)
    labels = np.where(y < horizon, 0, 1).astype(np.uint8)
    colours = _COLOURS + rng.uniform(-_SPREAD, _SPREAD, _COLOURS.shape)
    photo = colours[labels]

    def paint(shape: np.ndarray, label: int) -> None:
        labels[shape] = label
        photo[shape] = colours[label] + rng.uniform(-_SPREAD, _SPREAD, 3) / 2

    for left in np.arange(rng.uniform(-0.1, 0.1), 1, 0.22):
        wide, top = rng.uniform(0.1, 0.2), rng.uniform(0.1, horizon - 0.1)
        paint((x > left) & (x < left + wide) & (y > top) & (y < horizon), 2)
    for _ in range(rng.integers(1, 4)):
        cx, cy, r = rng.uniform(0, 1), horizon - rng.uniform(0.1, 0.2), rng.uniform(0.06, 0.12)
        crown = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        paint(crown | ((abs(x - cx) < 0.012) & (y > cy) & (y < horizon + 0.03)), 3)
    for _ in range(rng.integers(1, 4)):
        cx, cy, r = rng.uniform(0, 1), rng.uniform(horizon + 0.05, 0.9), rng.uniform(0.06, 0.13)
        body = (abs(x - cx) < r) & (abs(y - cy) < 0.35 * r)
        paint(body | ((abs(x - cx) < 0.55 * r) & (y < cy) & (y > cy - 0.8 * r)), 4)
    for _ in range(rng.integers(1, 4)):
        cx, cy, r = rng.uniform(0, 1), rng.uniform(horizon, 0.8), rng.uniform(0.06, 0.1)
        head = (x - cx) ** 2 + (y - cy + 1.2 * r) ** 2 < (0.3 * r) ** 2
        paint(head | (((x - cx) / 0.35) ** 2 + (y - cy) ** 2 < r**2), 5)
    light = rng.uniform(0.8, 1.1) + rng.uniform(-0.15, 0.15) * (x - 0.5)[..., None]
    photo = photo * light + rng.normal(0, 8, photo.shape)
    return photo.clip(0, 255).astype(np.uint8), labels
