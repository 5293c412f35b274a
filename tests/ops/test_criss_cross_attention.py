"""segops.criss_cross_attention: golden cases, dense attention with a mask, symmetry, huge energies, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from halves import assert_summed_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference.criss_cross_attention import energies
from segops.testing import assert_gradients_match

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "criss_cross.npz")
SHAPES = ("rect", "wide", "row", "col", "one", "big")


def golden(shape: str, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(GOLDEN[f"{shape}_{name}"]) for name in names]


def inputs(n, d, c, height, width, dtype=torch.float64):
    query, key = torch.randn(2, n, d, height, width, dtype=dtype)
    return query, key, torch.randn(n, c, height, width, dtype=dtype)


def dense(query, key, value):
    """Attention of every pixel to every other, those off its row and column masked."""
    n, _, height, width = query.shape
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    seen = (y[:, None] == y) | (x[:, None] == x)
    weights = (query.flatten(2).mT @ key.flatten(2)).masked_fill(~seen, -torch.inf).softmax(-1)
    return (value.flatten(2) @ weights.mT).view(value.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_golden(shape):
    *tensors, grad, out, dq, dk, dv = golden(shape, "q", "k", "v", "gout", "out", "dq", "dk", "dv")
    for x in tensors:
        x.requires_grad_()
    actual = segops.criss_cross_attention(*tensors)
    results = (actual, *torch.autograd.grad(actual, tensors, grad))
    for a, b, name in zip(results, (out, dq, dk, dv), ("out", "dq", "dk", "dv"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * max(1.0, float(b.abs().max())), msg=f"{shape} {name}")


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_golden_weights_of_the_reference(shape):
    query, key, weights, other_order = golden(shape, "q", "k", "attn_HW", "attn_cudaorder")
    actual, height = energies(query, key).softmax(-1), query.shape[2]
    torch.testing.assert_close(actual, weights, rtol=1e-5, atol=1e-6)
    column, row = actual.split(query.shape[2:], -1)
    away = torch.stack([column[:, y, :, [i for i in range(height) if i != y]] for y in range(height)], 1)
    torch.testing.assert_close(torch.cat([row, away], -1).permute(0, 3, 1, 2), other_order, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 2),
    d=st.integers(1, 20),
    c=st.integers(1, 70),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    single=st.booleans(),
)
def test_equals_dense_attention_with_a_mask(n, d, c, height, width, single):
    torch.manual_seed(height * width)
    tensors = [x.requires_grad_() for x in inputs(n, d, c, height, width)]
    expected = dense(*tensors)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, grad)
    dtype = torch.float32 if single else torch.float64
    cast = [x.detach().to(dtype).requires_grad_() for x in tensors]
    out = segops.criss_cross_attention(*cast)
    eps = 2e-5 if single else 1e-11
    assert_gradients_match(out.detach(), expected.detach(), eps, "out")
    for a, b, name in zip(torch.autograd.grad(out, cast, grad.to(dtype)), wanted, "qkv", strict=True):
        if name == "v" or height * width > 1:  # a softmax of one weight has no gradient
            assert_gradients_match(a, b, eps, name)
        else:
            assert not a.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_sums_for_the_backward_pass(dtype):
    query, key, value = inputs(2, 5, 3, 11, 18, dtype)
    lse = torch.ops.segops.criss_cross_attention(query, key, value.requires_grad_())[1]
    wide = energies(query.double(), key.double()).logsumexp(-1)
    assert not lse.requires_grad
    torch.testing.assert_close(lse, wide.to(lse.dtype))


@pytest.mark.parametrize("height", [1, 65, 130])
@pytest.mark.parametrize("width", [1, 17, 97])
def test_blocks_of_lines(height, width):
    """Sizes at which vectors, blocks of lines and chunks of channels end early."""
    tensors = [x.requires_grad_() for x in inputs(1, 3, 33, height, width)]
    out, expected = segops.criss_cross_attention(*tensors), None
    with segops.backend("reference"):
        expected = segops.criss_cross_attention(*tensors)
    grad = torch.randn_like(out)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for a, b in zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_height_and_width_swapped():
    tensors = inputs(2, 4, 9, 12, 31)
    turned = segops.criss_cross_attention(*(x.mT for x in tensors))
    torch.testing.assert_close(turned, segops.criss_cross_attention(*tensors).mT, rtol=1e-12, atol=1e-12)


def test_rows_and_columns_in_any_order():
    tensors = inputs(1, 4, 9, 12, 31)
    y, x = torch.randperm(12), torch.randperm(31)
    out = segops.criss_cross_attention(*(t[:, :, y][..., x] for t in tensors))
    torch.testing.assert_close(out, segops.criss_cross_attention(*tensors)[:, :, y][..., x], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1e2, -1e2, 1e4, -1e4])
def test_huge_energies(dtype, factor):
    """The softmax becomes a maximum, whether the largest energy lies in the row or in the column."""
    query, key, value = inputs(1, 2, 5, 9, 14, dtype)
    tensors = [x.requires_grad_() for x in (factor * query.sign(), key.abs() + 1, value)]
    out = segops.criss_cross_attention(*tensors)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert all(x.isfinite().all() for x in (out, *gradients))
    torch.testing.assert_close(out, dense(*tensors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_not_a_number_stays_with_those_who_see_it(dtype):
    query, key, value = inputs(1, 3, 4, 6, 7, dtype)
    key[0, 1, 2, 3] = torch.nan
    out = segops.criss_cross_attention(query, key, value)
    seen = torch.zeros(6, 7, dtype=torch.bool)
    seen[2], seen[:, 3] = True, True
    assert torch.equal(out.isnan().all(1)[0], seen)
    assert torch.equal(out.isnan().any(1)[0], seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_has_all_the_weight(dtype):
    """Of a single pixel: what the softmax takes off its gradient cancels it."""
    query, key, value = inputs(2, 3, 141, 1, 1, dtype)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out, grad = segops.criss_cross_attention(*leaves), torch.randn_like(value)
    gradients = torch.autograd.grad(out, leaves, grad)
    assert torch.equal(out, value)
    assert not gradients[0].any()
    assert not gradients[1].any()
    torch.testing.assert_close(gradients[2], grad)


@pytest.mark.parametrize("sizes", [(1, 4, 6, 9, 8), (2, 5, 7, 13, 35), (1, 3, 65, 17, 18)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, sizes):
    assert_summed_in_float32(segops.criss_cross_attention, *inputs(*sizes, dtype))


def test_the_same_on_any_number_of_threads():
    tensors = [x.requires_grad_() for x in inputs(2, 8, 40, 33, 45, torch.float32)]
    threads, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            out = segops.criss_cross_attention(*tensors)
            outs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    finally:
        torch.set_num_threads(threads)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, outs[0], strict=True))


def test_empty():
    for shape in ((0, 2, 4, 5), (2, 2, 0, 5), (2, 2, 4, 0)):
        x = torch.rand(shape, requires_grad=True)
        out = segops.criss_cross_attention(x, x, x)
        assert out.shape == shape
        assert torch.autograd.grad(out.sum(), x)[0].shape == shape


X = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("query", "key", "value", "error", "message"),
    [
        ([1.0], X, X, TypeError, r"query: expected a tensor \(N, D, H, W\), got list"),
        (X[0], X, X, ValueError, r"query: expected 4 dimensions \(N, D, H, W\), got shape \(3, 4, 5\)"),
        (X, X.to_sparse(), X, TypeError, "key: expected a dense tensor, got layout torch.sparse_coo"),
        (X.int(), X, X, TypeError, "query: expected float64, .* got torch.int32"),
        (X, X.double(), X, TypeError, "key: expected torch.float32 like query, got torch.float64"),
        (X, X, X.bfloat16(), TypeError, "value: expected torch.float32 like query, got torch.bfloat16"),
        (X, X.to("meta"), X, ValueError, "key: expected device cpu like query, got meta"),
        (X, X, X.to("meta"), ValueError, "value: expected device cpu like query, got meta"),
        (X, X[:, :2], X, ValueError, r"key: expected shape \(2, 3, 4, 5\) like query, got \(2, 2, 4, 5\)"),
        (X, X, X.mT, ValueError, r"value: expected shape \(2, C, 4, 5\) to go with query, got \(2, 3, 5, 4\)"),
        (X[:, :0], X[:, :0], X, ValueError, r"query: expected at least one channel, got shape \(2, 0, 4, 5\)"),
        (X, X, X[:, :0], ValueError, r"value: expected at least one channel, got shape \(2, 0, 4, 5\)"),
    ],
)
def test_bad_arguments(query, key, value, error, message):
    with pytest.raises(error, match=message):
        segops.criss_cross_attention(query, key, value)
