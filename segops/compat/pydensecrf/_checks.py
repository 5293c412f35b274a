"""Argument checks of the drop-in: each names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

MAX_FEATURES = 24  # as csrc/include/segops/simplex.h has it


def count(name: str, x: Any, least: int) -> int:
    """An integer of at least ``least``."""
    if isinstance(x, bool) or not isinstance(x, Integral):
        raise TypeError(f"{name}: expected an integer, got {type(x).__name__}")
    if int(x) < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {x}")
    return int(x)


def positive(name: str, x: Any) -> float:
    """A finite number above 0."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    number = float(x)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {number}")
    return number


def positives(name: str, x: Any, n: int) -> list[float]:
    """One positive number for all of ``n``, or one each."""
    if isinstance(x, np.ndarray):
        x = x.tolist()
    if isinstance(x, str) or not isinstance(x, Sequence):
        return [positive(name, x)] * n
    if len(x) != n:
        raise ValueError(f"{name}: expected one number or {n}, got {len(x)}")
    return [positive(f"{name}[{i}]", value) for i, value in enumerate(x)]


def numbers(name: str, x: Any) -> np.ndarray:
    """An array (or what NumPy makes one of) of real numbers."""
    try:
        x = np.asarray(x)
    except ValueError as error:  # lists of unequal length
        raise ValueError(f"{name}: expected an array of numbers: {error}") from None
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected an array of real numbers, got dtype {x.dtype}")
    return x


def floats(name: str, x: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    """Numbers as float32, of a shape whose words stand for any size. What is too large becomes infinite."""
    x = numbers(name, x)
    if x.ndim != len(shape) or any(isinstance(s, int) and s != n for s, n in zip(shape, x.shape, strict=True)):
        form = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({form}), got {x.shape}")
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def finite(name: str, x: np.ndarray) -> np.ndarray:
    """An array without NaN or infinity."""
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN, inf or a value beyond float32")
    return x
