"""What is asked of operators that take bfloat16 and float16: results and gradients as if all sums were float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import segops
from segops.testing import assert_gradients_match


def assert_summed_in_float32(function: Callable[..., Tensor], *tensors: Tensor, backend: str = "cpu") -> None:
    """The result and all gradients of ``function``, of halves, within two roundings of the float64 reference."""
    dtype, grad = tensors[0].dtype, None

    def step(*inputs: Tensor) -> list[Tensor]:
        nonlocal grad
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        grad = torch.randn_like(out).to(dtype) if grad is None else grad
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    with segops.backend("reference"):
        expected = step(*(x.double() for x in tensors))
    with segops.backend(backend):
        actual = step(*tensors)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == dtype
        assert_gradients_match(a, b, 2 * torch.finfo(dtype).eps, "result" if i == 0 else f"gradient {i}")
