"""What every operator promises, on a CUDA device: Triton as compiled code, and CUDA C++ where an operator has it."""

from __future__ import annotations

import pytest
import torch
import torch.utils._pytree as pytree
from contract import FIRST, expected, gradients, op, results

import segops
from segops import _backends
from segops._registry import OPERATORS, load_all
from segops.testing import CASES, assert_as_good_as, assert_gradients_match, poisoned_memory

load_all()
pytestmark = pytest.mark.gpu

BACKENDS = {"triton": (torch.float32, torch.float64), "cuda": (torch.float32,)}  # and what each computes in
ROWS = [
    pytest.param(case, backend, dtype, id=f"{case}-{backend}-{dtype}")
    for case in CASES
    for backend, dtypes in BACKENDS.items()
    for dtype in dtypes
    if _backends.unavailable(case.op, backend, "cuda") is None
]
# CUDA C++ has no gradient of mean_field.
WITH_GRADIENT = [
    row for row in ROWS if row.values[0].gradients and (row.values[0].op, row.values[1]) != ("mean_field", "cuda")
]
ROW = ("case", "backend", "dtype")


def in_float64(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize(ROW, ROWS)
def test_agrees_with_the_float64_reference(case, backend, dtype):
    with segops.backend(backend):
        actual = results(op(case)(*case.args(dtype, "cuda")))
    oracle = expected(case, torch.float64)
    for i, (a, eager, exact) in enumerate(zip(actual, expected(case, dtype), oracle, strict=True)):
        assert a.is_cuda and a.dtype == eager.dtype
        assert_as_good_as(a.cpu(), eager, exact, f"{case}[{i}]")


@pytest.mark.parametrize(ROW, WITH_GRADIENT)
def test_gradients_agree_with_the_float64_reference(case, backend, dtype):
    oracle = gradients(case, case.args(torch.float64), OPERATORS[case.op].reference)
    with segops.backend(backend):
        actual = gradients(case, case.args(dtype, "cuda"))
    for i, (a, b) in enumerate(zip(actual, oracle, strict=True)):
        assert a.dtype == dtype
        assert_gradients_match(a.cpu(), b, 1e-10 if dtype == torch.float64 else 2e-5, f"{case} gradient {i}")


@pytest.mark.parametrize(ROW, ROWS)
def test_outputs_are_fully_written(case, backend, dtype):
    with segops.backend(backend):
        first = results(op(case)(*case.args(dtype, "cuda")))
        with poisoned_memory():
            again = results(op(case)(*case.args(dtype, "cuda")))
    for a, b in zip(again, first, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_deterministic_algorithms_repeat_to_the_bit(case):
    with poisoned_memory():  # which asks for deterministic algorithms
        first, again = (results(op(case)(*case.args(torch.float32, "cuda"))) for _ in range(2))
    for a, b in zip(again, first, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_compiles_whole(case):
    torch._dynamo.reset()
    args = case.args(torch.float32, "cuda")
    compiled = torch.compile(lambda *args: op(case)(*args), fullgraph=True)
    for actual, eager in zip(results(compiled(*args)), results(op(case)(*args)), strict=True):
        torch.testing.assert_close(actual, eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [c for c in FIRST if OPERATORS[c.op].autocast], ids=str)
def test_autocast_computes_in_float32(case, dtype):
    args = case.args(dtype, "cuda")
    wide = pytree.tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, args)
    with torch.autocast("cuda", dtype):
        actual = results(op(case)(*args))
    for a, b in zip(actual, results(op(case)(*wide)), strict=True):
        assert a.dtype == (torch.float32 if b.is_floating_point() else b.dtype)
        torch.testing.assert_close(a, b)


HALVES = [c for c in CASES if not OPERATORS[c.op].autocast]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", HALVES, ids=str)
def test_halves_agree_with_the_float64_reference(case, dtype):
    """Those that autocast leaves in half precision: summed in float32, as exact as plain torch at least."""
    args = case.args(dtype, "cuda")
    oracle = results(OPERATORS[case.op].reference(*pytree.tree_map(in_float64, args)))
    eager = results(OPERATORS[case.op].reference(*args))
    for i, (a, b, exact) in enumerate(zip(results(op(case)(*args)), eager, oracle, strict=True)):
        assert_as_good_as(a, b, exact, f"{case}[{i}]")


# Their lattices have as many vertices as the data ask for, or they check their input: the host waits, so no graph.
WAITING = {
    "gaussian_filter_exact", "gaussian_filter_exact_backward", "mean_field", "mean_field_backward", "permutohedral_filter",
}  # fmt: skip


@pytest.mark.parametrize("case", [c for c in FIRST if c.op not in WAITING], ids=str)
def test_graphs_capture_it(case):
    args = case.args(torch.float32, "cuda")
    expected = results(op(case)(*args))  # Triton compiles here
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = results(op(case)(*args))
    graph.replay()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_gpu_reads_halves_and_autocast_lowers():
    """Criss-cross attention, of floats in autocast and of halves, is the operator of the halves."""
    x = torch.randn(1, 8, 9, 7, device="cuda")
    halves = segops.criss_cross_attention(*[x.bfloat16()] * 3)
    with torch.autocast("cuda", torch.bfloat16):
        lowered = segops.criss_cross_attention(x, x, x)
    assert halves.dtype == lowered.dtype == torch.bfloat16
    assert torch.equal(halves, lowered)
