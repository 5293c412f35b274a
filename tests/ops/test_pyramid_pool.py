"""segops.pyramid_pool: torch's own pooling, its gradient, what values spread to, large and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.testing import assert_as_good_as


def pooled(x: torch.Tensor, sizes) -> torch.Tensor:
    """A level at a time, by torch."""
    return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, size).flatten(2) for size in sizes], 2)


@settings(max_examples=40, deadline=None)
@given(
    planes=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sizes=st.lists(st.integers(1, 12) | st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5),
)
def test_is_adaptive_average_pooling(planes, size, sizes):
    x = torch.randn(*planes, *size, dtype=torch.float64, requires_grad=True)
    out, expected = segops.pyramid_pool(x, sizes), pooled(x, sizes)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(y, x, direction)[0] for y in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 3, 6, 8), (1, 2, 3, 6)])
def test_large_maps_lose_no_digits(sizes):
    x = torch.rand(1, 3, 385, 513)
    assert_as_good_as(segops.pyramid_pool(x, sizes), pooled(x, sizes), pooled(x.double(), sizes))


def test_the_pyramid_of_the_map_itself_is_the_map():
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(segops.pyramid_pool(x, [(5, 7)]), x.flatten(2))


def test_gradients_of_gradients():
    """Of a map, as a penalty on gradients asks for."""
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: segops.pyramid_pool(x, (1, 3)).pow(3), x)


def test_values_that_are_not_finite_stay_in_their_bins():
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 3, 12], x[0, 0, 15, 0] = math.nan, math.inf
    out = segops.pyramid_pool(x, (2, 8))[0, 0]
    assert [i for i, y in enumerate(out.tolist()) if math.isnan(y)] == [1, 4 + 8 + 6]
    assert [i for i, y in enumerate(out.tolist()) if math.isinf(y)] == [2, 4 + 56]


def test_half_precision_is_summed_in_float32():
    x = torch.randn(2, 3, 40, 40).bfloat16()
    out = segops.pyramid_pool(x)
    assert out.dtype == torch.bfloat16 and torch.equal(out, segops.pyramid_pool(x.float()).bfloat16())


X = torch.rand(2, 3, 5, 6)


@pytest.mark.parametrize(
    ("x", "sizes", "error", "message"),
    [
        (X[0], (1,), ValueError, r"x: expected 4 dimensions \(N, C, H, W\), got shape \(3, 5, 6\)"),
        (X.numpy(), (1,), TypeError, "x: expected a tensor .* got ndarray"),
        (X.long(), (1,), TypeError, "x: expected float64, .* got torch.int64"),
        (X[..., :0], (1,), ValueError, r"x: expected at least one channel, row and column, got shape \(2, 3, 5, 0\)"),
        (X, (), ValueError, "sizes: expected at least one, got none"),
        (X, 3, TypeError, "sizes: expected a sequence of integers or pairs, got int"),
        (X, "13", TypeError, "sizes: expected a sequence of integers or pairs, got str"),
        (X, (1, 0), ValueError, r"sizes\[1\]: expected at least 1, got 0"),
        (X, (1, (2, 0)), ValueError, r"sizes\[1\]: expected at least 1, got \(2, 0\)"),
        (X, (1.5,), TypeError, r"sizes\[0\]: expected an integer, got float"),
        (X, ((1, 2, 3),), ValueError, r"sizes\[0\]: expected an integer or a pair, got \(1, 2, 3\)"),
    ],
)
def test_bad_arguments(x, sizes, error, message):
    with pytest.raises(error, match=message):
        segops.pyramid_pool(x, sizes)
