"""segops.upsample_argmax: torch's two steps, ties, NaN, dtypes, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import segops


def two_steps(x, size, align_corners=False):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners).argmax(1)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 30),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 20), st.integers(2, 90)),
    align_corners=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_is_interpolate_and_argmax(channels, cells, size, align_corners, dtype):
    x = torch.randn(2, channels, *cells, dtype=torch.float64).to(dtype)
    labels = segops.upsample_argmax(x, size, align_corners=align_corners)
    full = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    chosen = full.gather(1, labels.long()[:, None])[:, 0]
    largest = full.max(1).values
    assert labels.shape == (2, *size) and bool((largest - chosen <= 8 * torch.finfo(dtype).eps).all())
    assert (labels != full.argmax(1)).float().mean() < 0.01  # but for logits that differ by rounding


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_of_equal_logits_the_lowest_class_wins(scale):
    """Small integers, whose interpolation by powers of two is exact: ties are everywhere."""
    x = torch.randint(-1, 2, (2, 7, 9, 11)).float()
    assert torch.equal(segops.upsample_argmax(x, (9 * scale, 11 * scale)), two_steps(x, (9 * scale, 11 * scale)).byte())


def test_constant_logits_are_class_0():
    assert not segops.upsample_argmax(torch.zeros(1, 40, 5, 6), (10, 12)).any()


def test_nan_counts_as_the_largest():
    x = torch.randn(1, 5, 6, 7)
    x[0, 3, 2, 2] = x[0, 1, 2, 3] = math.nan
    x[0, 4, 5, 6] = math.inf
    labels = segops.upsample_argmax(x, (24, 28))
    assert torch.equal(labels, two_steps(x, (24, 28)).byte())
    assert (labels == 1).any() and (labels == 3).any()


def test_the_lowest_class_where_all_are_minus_infinity():
    assert not segops.upsample_argmax(torch.full((1, 3, 2, 2), -math.inf), 4).any()


@pytest.mark.parametrize(
    ("channels", "dtype", "expected"),
    [
        (3, None, torch.uint8),
        (256, None, torch.uint8),
        (257, None, torch.int64),
        (3, torch.int64, torch.int64),
        (256, torch.uint8, torch.uint8),
    ],
)
def test_dtype_of_the_labels(channels, dtype, expected):
    x = torch.zeros(1, channels, 3, 2)
    x[:, -1] = 1
    labels = segops.upsample_argmax(x, 5, dtype=dtype)
    assert labels.dtype == expected and bool((labels == channels - 1).all())


def test_takes_halves_and_gives_no_gradient():
    x = torch.randn(1, 4, 3, 5).bfloat16().requires_grad_()
    labels = segops.upsample_argmax(x, (12, 20))
    assert not labels.requires_grad and torch.equal(labels, segops.upsample_argmax(x.float(), (12, 20)))


X = torch.randn(1, 3, 4, 5)


@pytest.mark.parametrize(
    ("x", "size", "dtype", "error", "message"),
    [
        (X[0], 8, None, ValueError, r"logits: expected 4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
        (X.int(), 8, None, TypeError, "logits: expected float64, .* got torch.int32"),
        (X[:, :, :0], 8, None, ValueError, "logits: expected at least one channel, row and column"),
        (X, 0, None, ValueError, "size: expected integers >= 1, got 0"),
        (X, (8, 9, 10), None, ValueError, "size: expected one integer or two, got 3"),
        (X, 8.0, None, TypeError, "size: expected an integer, got float"),
        (X, 8, torch.int32, TypeError, "dtype: expected torch.uint8 or torch.int64, got torch.int32"),
        (torch.zeros(1, 257, 2, 2), 8, torch.uint8, ValueError, "dtype: .* got uint8 for 257"),
    ],
)
def test_bad_arguments(x, size, dtype, error, message):
    with pytest.raises(error, match=message):
        segops.upsample_argmax(x, size, dtype=dtype)
