"""What torch asks of operators (fakes, autograd, export) of those that take halves as they are, in bfloat16: their
results and gradients are not all of one dtype. The contract test does the same in float32 and float64."""

from __future__ import annotations

import pytest
import torch

import segops.ops  # noqa: F401


def half(*shape: int) -> torch.Tensor:
    return torch.randn(shape).bfloat16().requires_grad_()


def sums(*shape: int) -> torch.Tensor:
    return torch.randn(shape).requires_grad_()


CASES = {
    "nonlocal_attention": lambda: (half(1, 4, 9), half(1, 4, 8), half(1, 5, 8), 0.5),
    "criss_cross_attention": lambda: (half(1, 4, 6, 7), half(1, 4, 6, 7), half(1, 5, 6, 7)),
    "interlaced_attention": lambda: (half(1, 4, 6, 7), half(1, 4, 6, 7), half(1, 5, 6, 7), [3, 3], "local", 0.5),
    "psa": lambda: (half(1, 5, 6, 7), half(1, 25, 6, 7), "collect", 5, 5, False, True),
    "em_attention": lambda: (half(2, 8, 40), sums(1, 8, 4), 3, "add"),
    "encoding": lambda: (half(2, 8, 40), sums(4, 8), sums(4)),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.segops, name), CASES[name]())
