"""Pictures and masks on disk, read with one clear error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class DataError(ValueError):
    """A file or folder that does not hold what it should; the message begins with its path."""


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 (H, W, 3), upright as its EXIF says.

    Raises:
        DataError: for a file that is missing, cut off, or no picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected a picture, {reason(error)}") from error


def read_mask(path: Path, num_classes: int | None = None, *, table: np.ndarray | None = None) -> np.ndarray:
    """A mask as uint8 (H, W): labels below ``num_classes``, or 255.

    Args:
        path: a grey or indexed picture, whose numbers are the labels.
        num_classes: labels from here to 254 are an error. Default: they are not looked at.
        table: uint8 (256,), what each number of the file stands for. Default: itself.

    Raises:
        DataError: for a file that is missing, no picture, in colour, or with labels that there are not.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode, labels = picture.mode, np.array(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected a mask, {reason(error)}") from error
    if labels.ndim != 2:
        raise DataError(f"{path}: expected a grey or indexed mask whose numbers are labels, got mode {mode}")
    if labels.dtype != np.uint8:
        wrong = (labels < 0) | (labels > 255)
        if wrong.any():
            raise DataError(f"{path}: expected labels from 0 to 255, got {labels[wrong].flat[0]}")
        labels = labels.astype(np.uint8)
    labels = labels if table is None else table[labels]
    wrong = (labels >= (256 if num_classes is None else num_classes)) & (labels != 255)
    if wrong.any():
        raise DataError(f"{path}: expected labels from 0 to {(num_classes or 256) - 1}, or 255, got {labels[wrong][0]}")
    return labels


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]
