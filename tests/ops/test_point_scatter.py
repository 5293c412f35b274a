"""segops.point_scatter: the last of equal indices wins, gradients, every dtype as it is, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.testing import poisoned_memory

BACKENDS = ("cpu", "triton", "reference")


def loop(input, indices, values):
    """Point after point, as the words say it."""
    out = input.clone(memory_format=torch.contiguous_format).flatten(2)
    for n, cells in enumerate(indices.tolist()):
        for p, cell in enumerate(cells):
            out[n, :, cell] = values[n, :, p]
    return out.view(input.shape)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3), channels=st.sampled_from([0, 1, 3, 9]), height=st.integers(1, 9), width=st.integers(1, 9),
    points=st.integers(0, 60), layout=st.sampled_from(["planes", "cells", "sliced"]), backend=st.sampled_from(BACKENDS),
)  # fmt: skip
def test_any_shape_is_a_loop_over_points(batch, channels, height, width, points, layout, backend):
    g = torch.Generator().manual_seed(points)
    x = torch.randn(batch, channels, height, width, generator=g, dtype=torch.float64)
    if layout == "cells":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        x = torch.cat([x, x], 3)[..., :width]
    cells = torch.randint(height * width, (batch, points), generator=g)
    values = torch.randn(batch, channels, points, generator=g, dtype=torch.float64)
    inputs, before = (x.clone().requires_grad_(), values.requires_grad_()), x.clone()
    with segops.backend(backend), poisoned_memory():
        out = segops.point_scatter(inputs[0], cells, values)
        direction = torch.arange(1.0, out.numel() + 1, dtype=torch.float64).view(out.shape)
        actual = torch.autograd.grad(out, inputs, direction)
    expected = loop(inputs[0], cells, values)
    assert torch.equal(out, expected)
    assert out.is_contiguous()
    for a, b in zip(actual, torch.autograd.grad(expected, inputs, direction, materialize_grads=True), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(x, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_of_equal_indices_wins(backend):
    values = torch.randn(1, 2, 500, requires_grad=True)
    cells = torch.arange(500)[None] % 3
    with segops.backend(backend):
        out = segops.point_scatter(torch.zeros(1, 2, 1, 4), cells, values)
        (grad,) = torch.autograd.grad(out.sum(), values)
    assert torch.equal(out[0, :, 0], torch.nn.functional.pad(values[0, :, [498, 499, 497]], (0, 1)))
    assert grad[0, 0].nonzero().flatten().tolist() == [497, 498, 499]


def test_one_large_plane_is_shared_by_threads():
    x, cells, values = torch.randn(1, 1, 300, 400), torch.randint(120000, (1, 7000)), torch.randn(1, 1, 7000)
    threads, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            outs.append(segops.point_scatter(x, cells, values))
    finally:
        torch.set_num_threads(threads)
    for out in outs:
        assert torch.equal(out, loop(x, cells, values))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_are_moved_as_they_are(dtype, backend):
    x, values = torch.randn(2, 3, 4, 5).to(dtype), torch.randn(2, 3, 6).to(dtype)
    values[0, 0, 0], x[1, 1, 1, 1] = float("nan"), float("inf")
    cells = torch.stack([torch.randperm(20)[:6] for _ in range(2)])
    with segops.backend(backend):
        out = segops.point_scatter(x, cells, values)
    assert out.dtype == dtype
    torch.testing.assert_close(out, loop(x, cells, values), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [-1, 6, 2**62, -(2**62)])
def test_cells_that_do_not_exist(cell, backend):
    x, cells, values = torch.zeros(1, 1, 2, 3), torch.tensor([[0, cell]]), torch.ones(1, 1, 2, requires_grad=True)
    with segops.backend(backend), pytest.raises(ValueError, match=r"indices: expected cells from 0 to 5, got .*"):
        segops.point_scatter(x, cells, values)


X, CELLS, V = torch.rand(2, 3, 4, 5), torch.zeros(2, 6, dtype=torch.int64), torch.rand(2, 3, 6)


@pytest.mark.parametrize(
    ("input", "indices", "values", "error", "message"),
    [
        (X[0], CELLS, V, ValueError, r"input: expected 4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
        (X.long(), CELLS, V, TypeError, "input: expected float64, .* got torch.int64"),
        (X, CELLS[0], V, ValueError, r"indices: expected 2 dimensions \(N, P\), got shape \(6,\)"),
        (X, CELLS[:1], V, ValueError, r"indices: expected shape \(2, P\) to go with input, got \(1, 6\)"),
        (X, CELLS.int(), V, TypeError, "indices: expected torch.int64, got torch.int32"),
        (X, CELLS, V[:, :1], ValueError, r"values: expected shape \(2, 3, 6\) .*, got \(2, 1, 6\)"),
        (X, CELLS, V[..., :1], ValueError, r"values: expected shape \(2, 3, 6\) .*, got \(2, 3, 1\)"),
        (X, CELLS, V.double(), TypeError, "values: expected torch.float32 like input, got torch.float64"),
        (X, CELLS, 1.0, TypeError, r"values: expected a tensor \(N, C, P\), got float"),
        (X, CELLS.to("meta"), V, ValueError, "indices: expected device cpu like input, got meta"),
        (X, CELLS, V.to("meta"), ValueError, "values: expected device cpu like input, got meta"),
        (X[:, :, :0], CELLS, V, ValueError, "indices: expected cells from 0 to -1, got 0 to 0"),
    ],
)
def test_bad_arguments(input, indices, values, error, message):
    with pytest.raises(error, match=message):
        segops.point_scatter(input, indices, values)
