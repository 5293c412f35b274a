"""What every operator promises, swept over the whole case table."""

from __future__ import annotations

import importlib.util
import os
from functools import partial

import pytest
import torch
import torch.utils._pytree as pytree
from contract import FIRST, expected, gradients, op, results, with_gradients

import segops
from segops import _backends
from segops._registry import OPERATORS
from segops.testing import CASES, Case, assert_as_good_as, assert_gradients_match, poisoned_memory

WITH_GRADIENT = [c for c in CASES if c.gradients]
GRADCHECK = [c for c in WITH_GRADIENT if c.name not in ("colour", "wide", "matrix", "none")]  # small enough


def backends() -> list[str]:
    """Those that can run here, a GPU's kernels on CPU tensors by their interpreter."""
    return [b for b in ("cpu", "triton") if importlib.util.find_spec("triton") or b != "triton"]


def rows(cases: list[Case], of_gradients: bool = False) -> list:
    """Cases by backend and dtype. Triton's interpreter is slow, in float64 most of all, where tiles are small: there one
    case of each operator has to do, and one has its gradients taken, whose operators are cases of their own. The
    reference is what results are compared with; its gradients by the operators are another thing than autograd's."""

    def worth_it(case: Case, backend: str, dtype: torch.dtype) -> bool:
        if backend == "reference":
            return of_gradients and dtype == torch.float64
        if backend == "cpu":
            return True
        if of_gradients:
            return case in FIRST and dtype == torch.float32
        return case in FIRST or dtype == torch.float32

    return [
        pytest.param(case, backend, dtype, id=f"{case}-{backend}-{dtype}")
        for case in cases
        for backend in ("reference", *backends())
        for dtype in (torch.float32, torch.float64)
        if worth_it(case, backend, dtype)
    ]


def test_the_table_covers_every_operator():
    assert {c.op for c in CASES} == set(OPERATORS)
    assert {c.op for c in WITH_GRADIENT} == {name for name, o in OPERATORS.items() if o.differentiable}


@pytest.mark.parametrize(("case", "backend", "dtype"), rows(list(CASES)))
def test_agrees_with_the_float64_reference(case, backend, dtype):
    with segops.backend(backend):
        actual = results(op(case)(*case.args(dtype)))
    for i, (a, eager, oracle) in enumerate(
        zip(actual, expected(case, dtype), expected(case, torch.float64), strict=True)
    ):
        assert a.dtype == eager.dtype
        assert_as_good_as(a, eager, oracle, f"{case}[{i}]")


@pytest.mark.parametrize(("case", "backend", "dtype"), rows(WITH_GRADIENT, of_gradients=True))
def test_gradients_agree_with_the_float64_reference(case, backend, dtype):
    oracle = gradients(case, case.args(torch.float64), OPERATORS[case.op].reference)
    with segops.backend(backend):
        actual = gradients(case, case.args(dtype))
    for i, (a, b) in enumerate(zip(actual, oracle, strict=True)):
        assert a.dtype == dtype
        assert_gradients_match(a, b, 1e-10 if dtype == torch.float64 else 2e-5, f"{case} gradient {i}")


@pytest.mark.parametrize("case", GRADCHECK, ids=str)
def test_gradcheck(case):
    args, _ = with_gradients(case, case.args(torch.float64))
    leaves, structure = pytree.tree_flatten(list(args))  # gradcheck does not look into lists
    assert torch.autograd.gradcheck(
        lambda *leaves: op(case)(*pytree.tree_unflatten(leaves, structure)), leaves, fast_mode=True
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(case):
    """The schema and the shapes of every case; how it is registered and traced, which is slow, once an operator."""
    args, _ = with_gradients(case, case.args(torch.float32))
    checks = {} if case in FIRST else {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(op(case), args, **checks)


@pytest.mark.parametrize("case", FIRST, ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(case, dynamic):
    torch._dynamo.reset()
    function = op(case)
    compiled = torch.compile(
        lambda *args: pytree.tree_map(lambda x: x * 2, results(function(*args))), fullgraph=True, dynamic=dynamic
    )
    args = case.args(torch.float32)
    for actual, eager in zip(compiled(*args), results(function(*args)), strict=True):
        torch.testing.assert_close(actual, eager * 2)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_exports(case):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return op(case)(*pytree.tree_unflatten([*tensors, *constants], structure))

    leaves, structure = pytree.tree_flatten(list(case.args(torch.float32)))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    constants = [x for x in leaves if not isinstance(x, torch.Tensor)]  # every operator takes its tensors first
    program = torch.export.export(Module(), tuple(tensors))
    for actual, eager in zip(
        results(program.module()(*tensors)), results(op(case)(*case.args(torch.float32))), strict=True
    ):
        torch.testing.assert_close(actual, eager)


def row(i: int, x):
    return x[i] if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if "empty" not in c.name], ids=str)
def test_vmap(case, everything):
    """Over the first argument alone, and over all tensors."""
    args = case.args(torch.float64)

    def stacked(x):
        return torch.stack([x, x.flip(-1)]) if isinstance(x, torch.Tensor) else x

    mapped = [everything or i == 0 for i in range(len(args))]
    batch = [pytree.tree_map(stacked, a) if m else a for a, m in zip(args, mapped, strict=True)]
    in_dims = tuple(
        pytree.tree_map(lambda x, m=m: 0 if m and isinstance(x, torch.Tensor) else None, a)
        for a, m in zip(args, mapped, strict=True)
    )
    actual = results(torch.func.vmap(op(case), in_dims)(*batch))
    for i in range(2):
        one = [pytree.tree_map(partial(row, i), a) if m else a for a, m in zip(batch, mapped, strict=True)]
        for a, b in zip(actual, results(op(case)(*one)), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in FIRST if OPERATORS[c.op].autocast], ids=str)
def test_autocast_computes_in_float32(case):
    args = case.args(torch.bfloat16)
    wide = pytree.tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, args)
    with torch.autocast("cpu", torch.bfloat16):
        actual = results(op(case)(*args))
    for a, b in zip(actual, results(op(case)(*wide)), strict=True):
        assert a.dtype == (torch.float32 if b.is_floating_point() else b.dtype)
        torch.testing.assert_close(a, b)


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same numbers in other memory."""
    spread = torch.stack([x, torch.full_like(x, 7)], -1)[..., 0]
    back = x.movedim(-1, 0).contiguous().movedim(0, -1)
    last = torch.cat([x, x], -1)[..., : x.shape[-1]]
    return [spread, back, last, x.flip(-1).contiguous().flip(-1)]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_any_memory_layout(case, backend):
    """Neighbouring tensors in different ones. In float64, but for Triton's interpreter, which is slow: there in float32,
    each tensor in two of the four."""
    triton = backend == "triton"
    dtype, close = (torch.float32, 1e-5) if triton else (torch.float64, 1e-12)
    leaves, structure = pytree.tree_flatten(list(case.args(dtype)))
    tensors = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    with segops.backend(backend):
        plain = results(op(case)(*pytree.tree_unflatten(leaves, structure)))
        for first in (0, 2) if triton else range(4):
            other = list(leaves)
            for count, i in enumerate(tensors):
                other[i] = layouts(leaves[i])[(first + count) % 4]
            other = pytree.tree_unflatten(other, structure)
            for a, b in zip(results(op(case)(*other)), plain, strict=True):
                torch.testing.assert_close(a, b, rtol=close, atol=close)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_fully_written_and_repeat(case):
    first = results(op(case)(*case.args(torch.float32)))
    with poisoned_memory():
        again = results(op(case)(*case.args(torch.float32)))
    for a, b in zip(again, first, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", list({c.op: c for c in reversed(WITH_GRADIENT)}.values()), ids=str)
def test_gradients_of_expanded_results(case):
    """A gradient with stride 0, as sum() sends it."""
    args, inputs = with_gradients(case, case.args(torch.float64))
    expanded = torch.autograd.grad(results(op(case)(*args))[0].sum(), inputs)
    out = results(op(case)(*args))[0]
    for a, b in zip(expanded, torch.autograd.grad(out, inputs, torch.ones_like(out)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_a_forced_backend_that_can_not_run_says_why(case):
    with pytest.raises(_backends.BackendError, match="can't run: runs on CUDA tensors"), segops.backend("cuda"):
        op(case)(*case.args(torch.float32))


def test_the_interpreter_is_on():
    """Otherwise the Triton rows above would not have run; tests/gpu runs them compiled."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
