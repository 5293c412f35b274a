"""segops.segmentation_sums: what the sums are, other losses from them, threads, edge cases, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import segops
from segops.testing import assert_as_good_as


def labels(shape: tuple, classes: int, ignored: float = 0.2) -> torch.Tensor:
    return torch.randint(0, classes, shape).masked_fill(torch.rand(shape) < ignored, 255)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40)),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 8.0, 11.0]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_sums_of_the_softmax(shape, gamma, ignored):
    # One class is certain, where the formula below has the gradient infinity times zero; see the test of certain pixels.
    assume(shape[1] > 1 or gamma == 0 or gamma >= 1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = labels((shape[0], *shape[2:]), shape[1], ignored)
    sums = segops.segmentation_sums(x, target, gamma=gamma)
    own = torch.nn.functional.one_hot(target.where(target != 255, shape[1]))[..., : shape[1]].movedim(-1, 1).double()
    own = torch.cat([own, own.new_zeros(shape[0], shape[1] - own.shape[1], *shape[2:])], 1)  # of absent classes
    valid, log_p = (target != 255)[:, None], x.log_softmax(1)
    p = log_p.exp()
    expected = (own * p, valid * p, own, own * -log_p, own * -log_p * (1 - p) ** gamma, valid * -log_p)
    for actual, wanted in zip(sums, (e.flatten(2).sum(2) for e in expected), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-12)
    weights = [torch.randn_like(s) for s in sums]
    ours = torch.autograd.grad(sum((w * s).sum() for w, s in zip(weights, sums, strict=True)), x)[0]
    theirs = torch.autograd.grad(
        sum((w * e.flatten(2).sum(2)).sum() for w, e in zip(weights, expected, strict=True)), x
    )[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_tversky_loss_and_its_gradient():
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    target = labels((2, 8, 9), 3, 0)

    def tversky(overlap, predicted, pixels):
        return 1 - (overlap / (0.3 * predicted + 0.7 * pixels)).mean()

    sums = segops.segmentation_sums(x, target)
    p, own = x.softmax(1), torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    expected = tversky((p * own).sum((2, 3)), p.sum((2, 3)), own.sum((2, 3)))
    loss = tversky(sums.overlap, sums.predicted, sums.pixels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


def test_many_pixels_lose_no_digits():
    x, target = 3 * torch.randn(1, 6, 200, 200), labels((1, 200, 200), 6)
    sums = torch.stack(segops.segmentation_sums(x, target, gamma=1.5))
    with segops.backend("reference"):
        eager, oracle = (torch.stack(segops.segmentation_sums(y, target, gamma=1.5)) for y in (x, x.double()))
    for actual, near, exact in zip(sums, eager, oracle, strict=True):
        assert_as_good_as(actual, near, exact)


def test_the_number_of_threads_changes_nothing():
    x, target = torch.randn(1, 4, 50000, requires_grad=True), labels((1, 50000), 4)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums = torch.stack(segops.segmentation_sums(x, target))
            results.append((sums, torch.autograd.grad(sums.pow(2).sum(), x)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("ignore_index", [255, 1, -100])
def test_ignored_pixels_may_hold_anything(ignore_index):
    target = torch.randint(0, 4, (2, 50))
    target[:, ::3] = ignore_index
    x = torch.randn(2, 4, 50)
    broken = torch.where((target == ignore_index)[:, None], math.nan, x).requires_grad_()
    sums = segops.segmentation_sums(broken, target, ignore_index=ignore_index)
    torch.testing.assert_close(sums, segops.segmentation_sums(x, target, ignore_index=ignore_index), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(torch.stack(sums).sum(), broken)
    assert gradient.isfinite().all() and not gradient.movedim(1, -1)[target == ignore_index].any()


def test_nan_stays_in_its_image():
    x = torch.randn(2, 3, 20, requires_grad=True)
    x.data[1, 0, 3] = math.nan
    sums = torch.stack(segops.segmentation_sums(x, torch.randint(0, 3, (2, 20))))
    assert sums[:, 0].isfinite().all() and sums[1, 1].isnan().all()
    (gradient,) = torch.autograd.grad(sums.sum(), x)
    assert gradient[0].isfinite().all() and gradient[1, :, 3].isnan().all() and gradient[1, :, 4:].isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_certain_pixels_have_finite_gradients(gamma):
    """p is 1 or 0, exactly."""
    x = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]])[None].requires_grad_()
    sums = segops.segmentation_sums(x, torch.tensor([[0, 0]]), gamma=gamma)
    assert sums.focal[0].tolist() == [2000, 0] and sums.overlap[0].tolist() == [1, 0]
    (gradient,) = torch.autograd.grad(torch.stack(sums).sum(), x)
    assert gradient.isfinite().all()


def test_classes_that_are_masked_out():
    x, target = torch.randn(2, 3, 30), torch.randint(0, 3, (2, 30))
    more = torch.cat([x, torch.full((2, 1, 30), -math.inf)], 1)
    for name, a, b in zip(
        segops.segmentation_sums(x, target)._fields,
        segops.segmentation_sums(more, target),
        segops.segmentation_sums(x, target),
        strict=True,
    ):
        torch.testing.assert_close(a[:, :3], b)
        assert bool((a[:, 3] == (math.inf if name == "uniform" else 0)).all())


def test_half_precision_is_computed_in_float32():
    x, target = torch.randn(2, 3, 40, 40).bfloat16(), labels((2, 40, 40), 3)
    sums = segops.segmentation_sums(x, target)
    assert sums.overlap.dtype == torch.float32
    torch.testing.assert_close(sums, segops.segmentation_sums(x.float(), target), rtol=0, atol=0)


X, TARGET = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))


@pytest.mark.parametrize(
    ("x", "target", "options", "error", "message"),
    [
        (X.numpy(), TARGET, {}, TypeError, "logits: expected a tensor .* got ndarray"),
        (X.long(), TARGET, {}, TypeError, "logits: expected float64, .* got torch.int64"),
        (X[0, 0], TARGET, {}, ValueError, r"logits: expected shape \(N, C, ...\) with C >= 1, got \(4, 5\)"),
        (X[:, :0], TARGET, {}, ValueError, r"logits: expected shape .* got \(2, 0, 4, 5\)"),
        (X, TARGET.float(), {}, TypeError, "target: expected integer labels, got torch.float32"),
        (X, TARGET[:, 1:], {}, ValueError, r"target: expected shape \(2, 4, 5\) .* got \(2, 3, 5\)"),
        (X, TARGET + 1, {}, ValueError, "target: expected labels from 0 to 2 or ignore_index = 255, got 3"),
        (X, TARGET - 1, {"ignore_index": None}, ValueError, "target: expected labels from 0 to 2, got -1"),
        (X, TARGET, {"ignore_index": 1.0}, TypeError, "ignore_index: expected an integer, got float"),
        (X, TARGET, {"gamma": -1}, ValueError, "gamma: expected a number >= 0, got -1"),
        (X, TARGET, {"gamma": math.nan}, ValueError, "gamma: expected a finite number, got nan"),
    ],
)
def test_bad_arguments(x, target, options, error, message):
    with pytest.raises(error, match=message):
        segops.segmentation_sums(x, target, **options)
