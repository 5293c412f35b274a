"""What the contract's tests share, on CPUs and on a GPU: cases, calls, gradients."""

from __future__ import annotations

import torch
import torch.utils._pytree as pytree

import segops
from segops._registry import OPERATORS
from segops.testing import CASES, Case

segops.ops  # noqa: B018  registers the operators

# One ordinary case of each operator, for the promises that do not depend on the numbers.
FIRST = list({c.op: c for c in reversed(CASES)}.values())


def op(case: Case):
    return getattr(torch.ops.segops, case.op)


def results(out) -> tuple:
    return out if isinstance(out, tuple) else (out,)


def with_gradients(case: Case, args: tuple) -> tuple[tuple, list[torch.Tensor]]:
    inputs = pytree.tree_leaves([args[i] for i in case.gradients])  # an argument may be a list of tensors
    return args, [x.requires_grad_() for x in inputs]


def gradients(case: Case, args: tuple, function=None) -> tuple[torch.Tensor, ...]:
    args, inputs = with_gradients(case, args)
    outs = [out for out in results((function or op(case))(*args)) if out.requires_grad]
    g = torch.Generator().manual_seed(1)
    directions = [torch.randn(out.shape, generator=g, dtype=torch.float64).to(out) for out in outs]
    return torch.autograd.grad(outs, inputs, directions)


def expected(case: Case, dtype: torch.dtype) -> tuple:
    return results(OPERATORS[case.op].reference(*case.args(dtype)))
