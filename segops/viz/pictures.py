"""Coloured labels, overlays, panels and maps of errors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np

from ..data import IGNORE

Colour = Sequence[int]


def colorize(
    labels: Any, palette: np.ndarray, *, ignore_index: int = IGNORE, ignore_colour: Colour = (0, 0, 0)
) -> np.ndarray:
    """Labels as colours.

    Args:
        labels: integer or bool ``(H, W)``, from 0 to ``len(palette) - 1``, or ``ignore_index``.
        palette: uint8 ``(classes, 3)``.
        ignore_index: label without a colour of its own. Default 255.
        ignore_colour: what it gets. Default black.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        TypeError: for labels that are no integers.
        ValueError: for other shapes, or a label without a colour.

    Example:
        >>> import numpy as np, segops
        >>> segops.viz.colorize(np.array([[0, 1, 255]]), segops.viz.palette("voc"), ignore_colour=(255, 255, 255))
        array([[[  0,   0,   0], [128,   0,   0], [255, 255, 255]]], dtype=uint8)
    """
    labels, palette = _labels("labels", labels), _palette(palette)
    ignored = labels == ignore_index
    wrong = ~ignored & ((labels < 0) | (labels >= len(palette)))
    if wrong.any():
        raise ValueError(
            f"labels: expected 0 to {len(palette) - 1}, one for each colour, or {ignore_index}, got {labels[wrong][0]}"
        )
    table = np.concatenate([palette, _colour("ignore_colour", ignore_colour)[None]])
    return table[np.where(ignored, len(palette), labels)]


def overlay(
    image: Any, labels: Any, palette: np.ndarray, *, alpha: float = 0.5, ignore_index: int = IGNORE
) -> np.ndarray:
    """Labels as colours over an image, which shows through, and alone where there is no label.

    Args:
        image: uint8 ``(H, W, 3)`` or ``(H, W)``.
        labels, palette, ignore_index: as in :func:`colorize`.
        alpha: opacity of the colours, from 0 to 1. Default 0.5.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        TypeError, ValueError: for what does not fit.

    Example:
        >>> import numpy as np, segops
        >>> image = np.full((1, 2, 3), 100, np.uint8)
        >>> segops.viz.overlay(image, np.array([[1, 255]]), segops.viz.palette("voc"))
        array([[[114,  50,  50], [100, 100, 100]]], dtype=uint8)
    """
    image, labels = _picture("image", image), _labels("labels", labels)
    _same_size("labels", labels, "image", image)
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha!r}")
    colours = colorize(labels, palette, ignore_index=ignore_index)
    mixed = alpha * colours + (1 - alpha) * image
    return np.where((labels == ignore_index)[..., None], image, mixed.round().astype(np.uint8))


def shade(image: Any, labels: Any, palette: np.ndarray) -> np.ndarray:
    """Labels as colours, shaded by the light and dark of the image; what has no colour stays grey.

    Args:
        image: uint8 ``(H, W, 3)`` or ``(H, W)``.
        labels: integer ``(H, W)``; those outside of the palette, like 255, have no colour.
        palette: uint8 ``(classes, 3)``.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        TypeError, ValueError: for what does not fit.

    Example:
        >>> import numpy as np, segops
        >>> image = np.full((1, 2, 3), 100, np.uint8)
        >>> segops.viz.shade(image, np.array([[1, 255]]), segops.viz.palette("voc"))
        array([[[103,   0,   0], [100, 100, 100]]], dtype=uint8)
    """
    image, labels, palette = _picture("image", image), _labels("labels", labels), _palette(palette)
    _same_size("labels", labels, "image", image)
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, 2)
    labelled = (labels >= 0) & (labels < len(palette))
    colour = palette[np.where(labelled, labels, 0)] * (0.55 + 0.65 * grey / 255)
    return np.where(labelled[..., None], colour.clip(max=255), grey).round().astype(np.uint8)


def error_map(
    prediction: Any,
    target: Any,
    *,
    ignore_index: int = IGNORE,
    right: Colour = (230, 230, 230),
    wrong: Colour = (214, 69, 80),
    ignored: Colour = (0, 0, 0),
) -> np.ndarray:
    """Where a prediction is wrong.

    Args:
        prediction, target: integer labels ``(H, W)``.
        ignore_index: label of ``target`` that is neither right nor wrong. Default 255.
        right, wrong, ignored: the three colours. Default light grey, red, black.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        TypeError, ValueError: for what does not fit.

    Example:
        >>> import numpy as np, segops
        >>> segops.viz.error_map(np.array([[0, 1, 1]]), np.array([[0, 2, 255]]))[0].tolist()
        [[230, 230, 230], [214, 69, 80], [0, 0, 0]]
    """
    prediction, target = _labels("prediction", prediction), _labels("target", target)
    _same_size("prediction", prediction, "target", target)
    kind = np.where(target == ignore_index, 2, prediction != target)
    return np.stack([_colour("right", right), _colour("wrong", wrong), _colour("ignored", ignored)])[kind]


def panel(
    pictures: Sequence[Any], *, columns: int | None = None, gap: int = 8, background: Colour = (255, 255, 255)
) -> np.ndarray:
    """Pictures side by side, each in the upper left of a cell as large as the largest.

    Args:
        pictures: uint8 ``(H, W, 3)`` or ``(H, W)``, at least one; sizes may differ.
        columns: pictures in a row. Default: all.
        gap: pixels between them. Default 8.
        background: colour of what is left. Default white.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        TypeError, ValueError: for what does not fit.

    Example:
        >>> import numpy as np, segops
        >>> segops.viz.panel([np.zeros((4, 5, 3), np.uint8), np.zeros((3, 6), np.uint8)], gap=2).shape
        (4, 14, 3)
    """
    drawn = [_picture(f"pictures[{i}]", x) for i, x in enumerate(pictures)]
    if not drawn:
        raise ValueError("pictures: expected at least one")
    columns = len(drawn) if columns is None else columns
    if not isinstance(columns, Integral) or not isinstance(gap, Integral) or columns < 1 or gap < 0:
        raise ValueError(f"columns, gap: expected integers of at least 1 and 0, got {columns!r} and {gap!r}")
    height, width = (max(x.shape[d] for x in drawn) for d in (0, 1))
    across, down = min(columns, len(drawn)), -(-len(drawn) // columns)
    page = np.empty((down * (height + gap) - gap, across * (width + gap) - gap, 3), np.uint8)
    page[:] = _colour("background", background)
    for i, x in enumerate(drawn):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + x.shape[0], left : left + x.shape[1]] = x
    return page


def save(path: str | PathLike, picture: Any) -> None:
    """Write a picture ``(H, W, 3)`` or ``(H, W)`` with pillow, in the format that the path's ending names."""
    from PIL import Image

    Image.fromarray(_picture("picture", picture)).save(path)


def _picture(name: str, x: Any) -> np.ndarray:
    """uint8 (H, W, 3); grey pictures get three equal channels."""
    x = np.asarray(x)
    if x.dtype != np.uint8:
        raise TypeError(f"{name}: expected uint8, got {x.dtype}")
    if x.ndim == 2:
        x = x[..., None].repeat(3, 2)
    if x.ndim != 3 or x.shape[2] != 3:
        raise ValueError(f"{name}: expected shape (H, W, 3) or (H, W), got {x.shape}")
    return x


def _labels(name: str, x: Any) -> np.ndarray:
    """Integer (H, W), wide enough for any comparison."""
    x = np.asarray(x)
    if x.dtype.kind not in "bui":
        raise TypeError(f"{name}: expected integer labels, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"{name}: expected shape (H, W), got {x.shape}")
    return x.astype(np.int64)


def _palette(x: Any) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype != np.uint8:
        raise TypeError(f"palette: expected uint8, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] != 3 or not len(x):
        raise ValueError(f"palette: expected shape (classes, 3) with at least one class, got {x.shape}")
    return x


def _colour(name: str, x: Any) -> np.ndarray:
    x = np.asarray(x)
    if x.shape != (3,) or x.dtype.kind not in "ui" or x.min() < 0 or x.max() > 255:
        raise ValueError(f"{name}: expected three integers from 0 to 255, got {x.tolist()}")
    return x.astype(np.uint8)


def _same_size(name: str, x: np.ndarray, other_name: str, other: np.ndarray) -> None:
    if x.shape[:2] != other.shape[:2]:
        raise ValueError(f"{name}: expected {other.shape[:2]} pixels like {other_name}, got {x.shape[:2]}")
