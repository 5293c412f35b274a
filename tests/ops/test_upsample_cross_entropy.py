"""segops.upsample_cross_entropy: torch's two steps, threads, edge cases, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import segops
from segops.testing import assert_as_good_as, assert_gradients_match


def two_steps(x, target, align_corners=False, class_weight=None, **options):
    full = F.interpolate(x, target.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(full, target, class_weight, ignore_index=255, **options)


def labels(shape: tuple, classes: int) -> torch.Tensor:
    return torch.randint(0, classes, shape).masked_fill(torch.rand(shape) < 0.2, 255)


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 20),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 20), st.integers(2, 40)),
    align_corners=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_is_interpolate_and_cross_entropy(channels, cells, size, align_corners, weighted, smoothing, reduction):
    x = torch.randn(2, channels, *cells, dtype=torch.float64, requires_grad=True)
    target = labels((2, *size), channels)
    target[0, 0, 0] = 0  # of nothing the mean is NaN in torch
    weight = torch.rand(channels, dtype=torch.float64) + 0.1 if weighted else None
    options = {"class_weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    ours = segops.upsample_cross_entropy(x, target, size, align_corners=align_corners, **options)
    theirs = two_steps(x, target, align_corners, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(ours)
    ours, theirs = (torch.autograd.grad(y, x, direction)[0] for y in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("scale", "offset"), [(8, 0.0), (4, 1e4)])
def test_single_precision(scale, offset):
    """Losses do not feel what is added to all logits, but for the rounding of the logits themselves."""
    x, target = 3 * torch.randn(1, 19, 12, 16) + offset, labels((1, 12 * scale, 16 * scale), 19)
    ours, eager, oracle = (y.requires_grad_() for y in (x.clone(), x.clone(), x.double()))
    losses = [
        f(y, target, reduction="none")
        for f, y in ((segops.upsample_cross_entropy, ours), (two_steps, eager), (two_steps, oracle))
    ]
    assert_as_good_as(*(loss.detach() for loss in losses))
    if not offset:
        mine, exact = torch.autograd.grad(losses[0].sum(), ours)[0], torch.autograd.grad(losses[2].sum(), oracle)[0]
        assert_gradients_match(mine, exact, 2e-5)


def test_the_number_of_threads_changes_nothing():
    x, target = torch.randn(2, 5, 9, 7, requires_grad=True), labels((2, 70, 60), 5)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            loss = segops.upsample_cross_entropy(x, target, reduction="none")
            results.append((loss, torch.autograd.grad(loss.sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("options", [{}, {"class_weight": torch.ones(3), "label_smoothing": 0.1}], ids=["plain", "all"])
def test_everything_ignored_is_a_differentiable_zero(options):
    x = torch.full((2, 3, 4, 5), math.nan, requires_grad=True)
    loss = segops.upsample_cross_entropy(x, torch.full((2, 8, 10), 255), **options)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_an_empty_batch_is_a_differentiable_zero():
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    loss = segops.upsample_cross_entropy(x, torch.zeros(0, 8, 10, dtype=torch.long))
    assert loss == 0 and torch.autograd.grad(loss, x)[0].shape == x.shape


def test_without_an_ignored_label():
    x, target = torch.randn(1, 256, 2, 3), torch.full((1, 4, 6), 255)
    expected = F.cross_entropy(F.interpolate(x, (4, 6), mode="bilinear"), target)
    torch.testing.assert_close(segops.upsample_cross_entropy(x, target, ignore_index=None), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_around_its_cell(bad):
    x, target = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randint(0, 3, (1, 16, 16))
    x.data[0, 1, 4, 4] = bad
    loss = segops.upsample_cross_entropy(x, target, reduction="none")
    wrong = loss[0].isnan()
    assert wrong[7:11, 7:11].all() and wrong.sum() == 16
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient[0, :, :3].isfinite().all() and gradient[0, :, 4, 4].isnan().all()


def test_huge_logits():
    x = (300 * torch.randn(1, 5, 6, 6)).requires_grad_()
    target = torch.randint(0, 5, (1, 48, 48))
    loss = segops.upsample_cross_entropy(x, target)
    torch.testing.assert_close(loss, two_steps(x, target))
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast(dtype):
    x, target = torch.randn(1, 3, 4, 5).to(dtype), labels((1, 8, 10), 3)
    loss, wide = segops.upsample_cross_entropy(x, target), segops.upsample_cross_entropy(x.float(), target)
    assert loss.dtype == dtype and torch.equal(loss, wide.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(segops.upsample_cross_entropy(x, target), wide)


X, TARGET = torch.randn(2, 3, 2, 3), torch.randint(0, 3, (2, 4, 5))


@pytest.mark.parametrize(
    ("x", "target", "options", "error", "message"),
    [
        (X[0], TARGET, {}, ValueError, r"logits: expected 4 dimensions \(N, C, H, W\), got shape \(3, 2, 3\)"),
        (X.long(), TARGET, {}, TypeError, "logits: expected float64, .* got torch.int64"),
        (X[..., :0], TARGET, {}, ValueError, "logits: expected at least one channel, row and column"),
        (X, TARGET.double(), {}, TypeError, "target: expected integer labels, got torch.float64"),
        (X, TARGET[0], {}, ValueError, r"target: expected shape \(2, H, W\) .* got \(4, 5\)"),
        (X, TARGET[:1], {}, ValueError, r"target: expected shape \(2, H, W\) .* got \(1, 4, 5\)"),
        (X, TARGET[:, :0], {}, ValueError, r"target: expected shape \(2, H, W\) .* got \(2, 0, 5\)"),
        (X, TARGET + 1, {}, ValueError, "target: expected labels from 0 to 2 or ignore_index = 255, got 3"),
        (X, TARGET, {"size": (5, 4)}, ValueError, r"size: expected \(4, 5\) like target, got \(5, 4\)"),
        (X, TARGET, {"size": 2.5}, TypeError, "size: expected an integer, got float"),
        (X, TARGET, {"label_smoothing": -0.1}, ValueError, "label_smoothing: expected a number from 0 to 1, got -0.1"),
        (X, TARGET, {"reduction": "max"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none', got 'max'"),
        (X, TARGET, {"class_weight": X[0, 0, 0, :2]}, ValueError, r"class_weight: expected shape \(3,\), got \(2,\)"),
        (X, TARGET, {"ignore_index": "255"}, TypeError, "ignore_index: expected an integer, got str"),
    ],
)
def test_bad_arguments(x, target, options, error, message):
    with pytest.raises(error, match=message):
        segops.upsample_cross_entropy(x, target, **options)
