"""Tolerances that come from the arithmetic, and memory that shows who did not write it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

EXACT = {torch.float64: 1e-10}


def _norm(x: Tensor) -> float:
    return float(x.double().norm())


def assert_as_good_as(
    actual: Tensor, eager: Tensor, oracle: Tensor, name: str = "result", terms: Tensor | None = None
) -> None:
    """``actual`` may be at most twice as far from the float64 oracle as eager PyTorch in the same dtype, plus rounding.

    Rounding is 4 units in the last place of the dtype, relative to the oracle's norm; float64 is held to 1e-10.
    Integers have to be the oracle's own. ``terms`` is the oracle of the inputs' absolute values, whose norm rounding is
    relative to where a sum may cancel to next to nothing.
    """
    assert actual.shape == oracle.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    if not oracle.is_floating_point():
        assert torch.equal(actual, oracle), f"{name}: {int((actual != oracle).sum())} of {oracle.numel()} differ"
        return
    assert torch.isfinite(actual).all() or not torch.isfinite(oracle).all(), f"{name}: not finite"
    error, scale = _norm(actual.double() - oracle.double()), _norm(oracle if terms is None else terms)
    if actual.dtype in EXACT:
        allowed = EXACT[actual.dtype] * scale
    else:
        allowed = 2 * _norm(eager.double() - oracle.double()) + 4 * torch.finfo(actual.dtype).eps * scale
    assert error <= allowed, f"{name}: off by {error:.3g} of {scale:.3g}, at most {allowed:.3g} allowed"


def assert_gradients_match(actual: Tensor, oracle: Tensor, eps: float, name: str = "gradient") -> None:
    """Direction, size and zeros: what an absolute tolerance would let through, a zeroed gradient say, fails here."""
    assert actual.shape == oracle.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    a, b = actual.double().flatten(), oracle.double().flatten()
    if not b.numel():
        return
    if not b.norm():
        assert not a.norm(), f"{name}: expected zeros, got norm {a.norm():.3g}"
        return
    relative = float((a - b).norm() / b.norm())
    assert relative <= eps, f"{name}: relative L2 error {relative:.3g}, at most {eps:.3g} allowed"
    cosine = float(a @ b / (a.norm() * b.norm()))
    assert cosine >= 1 - eps, f"{name}: cosine {cosine}"
    wanted = b.abs() > 100 * eps * b.abs().max()
    assert bool((a[wanted] != 0).all()), f"{name}: {int((a[wanted] == 0).sum())} entries are 0 that should not be"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, fresh floating-point memory holds NaN, so that an output not fully written shows it."""
    settings: Any = torch.utils.deterministic  # a module whose attributes are properties
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
