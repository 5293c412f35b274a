"""segops.confusion_matrix: golden counts, argmax on the way, ignored pixels, labels out of range, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops

BACKENDS = ("cpu", "triton", "reference")
DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def loop(prediction, target, classes, ignore_index):
    """Pixel after pixel, as the words say it."""
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != ignore_index:
            matrix[t, p] += 1
    return matrix


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend):
    """The numbers of sklearn.metrics.confusion_matrix (1.7) and torchmetrics' multiclass_confusion_matrix (1.9)."""
    target, prediction = torch.tensor([2, 0, 2, 2, 0, 1]), torch.tensor([0, 0, 2, 2, 0, 2])
    with segops.backend(backend):
        assert segops.confusion_matrix(prediction, target, 3).tolist() == [[2, 0, 0], [0, 0, 1], [1, 0, 2]]


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(0, 12), min_size=1, max_size=4), classes=st.integers(1, 50),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)), ignore_index=st.sampled_from([None, 0, 100, -100]),
    threads=st.sampled_from([1, 3]), backend=st.sampled_from(["cpu", "cpu", "reference"]),
)  # fmt: skip
def test_any_labels_are_counted_one_by_one(shape, classes, dtypes, ignore_index, threads, backend):
    g = torch.Generator().manual_seed(classes)
    prediction, target = torch.randint(0, classes, (2, *shape), generator=g).unbind()
    if ignore_index is not None and (ignore_index >= 0 or dtypes[1] != torch.uint8):
        target[torch.rand(shape, generator=g) < 0.2] = ignore_index
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with segops.backend(backend):
            actual = segops.confusion_matrix(prediction.to(dtypes[0]), target.to(dtypes[1]), classes, ignore_index)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(actual, loop(prediction, target, classes, ignore_index))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_argmax_of_logits_is_torchs(backend, dtype):
    """With ties, NaN and infinities; enough pixels for whole vectors and a rest."""
    logits = torch.randint(-2, 3, (2, 7, 5, 31)).to(dtype)
    logits[torch.rand(logits.shape) < 0.05] = math.nan
    logits[torch.rand(logits.shape) < 0.05] = math.inf
    logits[torch.rand(logits.shape) < 0.2] = -math.inf
    target = torch.randint(0, 7, (2, 5, 31))
    with segops.backend(backend):
        actual = segops.confusion_matrix(logits, target, 7)
    assert torch.equal(actual, loop(logits.argmax(1), target, 7, 255))


def test_many_pixels_on_many_threads():
    """Several tiles for each thread; the sum is all of them."""
    prediction, target = torch.randint(0, 150, (2, 300, 500)).unbind()
    matrix = segops.confusion_matrix(prediction, target, 150)
    assert torch.equal(matrix, torch.bincount((target * 150 + prediction).flatten(), minlength=150**2).view(150, 150))


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_ignored_and_nothing_at_all(backend):
    with segops.backend(backend):
        ignored = segops.confusion_matrix(torch.full((2, 3), 77), torch.full((2, 3), 255), 4)
        nothing = segops.confusion_matrix(torch.rand(0, 4, 3, 5), torch.zeros(0, 3, 5, dtype=torch.uint8), 4)
    assert torch.equal(ignored, torch.zeros(4, 4, dtype=torch.int64))
    assert torch.equal(nothing, ignored)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_out_of_range_are_named(backend, dtype):
    """The first of them, wherever it stands; at an ignored pixel the prediction may be anything."""
    prediction, target = torch.zeros(2, 60, 500, dtype=dtype).unbind()
    target[0, 0], prediction[0, 0] = 9, 200
    with segops.backend(backend):
        segops.confusion_matrix(prediction, target, 3, 9)
        prediction[40, 3] = 5
        with pytest.raises(ValueError, match="prediction: expected labels from 0 to 2, got 5"):
            segops.confusion_matrix(prediction, target, 3, 9)
        target[40, 2] = 7
        with pytest.raises(ValueError, match="target: expected labels from 0 to 2 or ignore_index = 9, got 7"):
            segops.confusion_matrix(prediction, target, 3, 9)
        with pytest.raises(ValueError, match="target: expected labels from 0 to 2, got 9"):
            segops.confusion_matrix(prediction, target, 3, None)


@pytest.mark.parametrize("wrong", [-1, 3, 2**32, -(2**32) + 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_labels_do_not_wrap_around(backend, wrong):
    with segops.backend(backend), pytest.raises(ValueError, match="expected labels from 0 to 2"):
        segops.confusion_matrix(torch.tensor([0, wrong]), torch.tensor([0, 1]), 3)
    with segops.backend(backend), pytest.raises(ValueError, match="expected labels from 0 to 2"):
        segops.confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, wrong]), 3)


def test_bool_labels():
    prediction, target = (torch.rand(6, 7) > 0.3), (torch.rand(6, 7) > 0.5)
    expected = loop(prediction.long(), target.long(), 2, None)
    assert torch.equal(segops.confusion_matrix(prediction, target, 2), expected)


def test_layouts():
    logits, labels = torch.randn(3, 6, 7, 5), torch.randint(0, 6, (3, 7, 5))
    last = logits.contiguous(memory_format=torch.channels_last)
    expected = loop(logits.argmax(1), labels, 6, None)
    assert torch.equal(segops.confusion_matrix(last, labels, 6), expected)
    assert torch.equal(segops.confusion_matrix(last, labels.mT.contiguous().mT, 6), expected)
    assert torch.equal(segops.confusion_matrix(logits.argmax(1), labels.mT.contiguous().mT, 6), expected)


def test_results_carry_no_gradient():
    assert not segops.confusion_matrix(
        torch.randn(1, 3, 4, requires_grad=True), torch.zeros(1, 4).long(), 3
    ).requires_grad


LABELS = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("prediction", "target", "classes", "error", "message"),
    [
        (LABELS, LABELS[:1], 3, ValueError, r"prediction: expected labels of shape \(1, 4\) like target, got \(2, 4\)"),
        (torch.rand(2, 4, 4), LABELS, 3, ValueError, r"prediction: expected logits \(N, 3, ...\) for target \(N, ...\), got \(2, 4, 4\)"),
        (torch.rand(2, 4), LABELS, 3, ValueError, r"prediction: expected logits \(N, 3, ...\)"),
        (torch.rand(2, 3, 5), LABELS, 3, ValueError, r"prediction: expected logits \(N, 3, ...\)"),
        (LABELS, LABELS.float(), 3, TypeError, "target: expected integer labels, got torch.float32"),
        (LABELS.to(torch.complex64), LABELS, 3, TypeError, "prediction: expected integer labels, got torch.complex64"),
        (np.zeros((2, 4)), LABELS, 3, TypeError, "prediction: expected a tensor of labels or logits, got ndarray"),
        (LABELS, LABELS.to_sparse(), 3, TypeError, "target: expected a dense tensor, got layout"),
        (LABELS.to("meta"), LABELS, 3, ValueError, "prediction: expected device cpu like target, got meta"),
        (LABELS, LABELS, 0, ValueError, "num_classes: expected an integer >= 1, got 0"),
        (LABELS, LABELS, 40000, ValueError, "num_classes: expected at most 32768, got 40000"),
        (LABELS, LABELS, 3.0, TypeError, "num_classes: expected an integer, got float"),
    ],
)  # fmt: skip
def test_bad_arguments(prediction, target, classes, error, message):
    with pytest.raises(error, match=message):
        segops.confusion_matrix(prediction, target, classes)


def test_bad_ignore_index():
    with pytest.raises(TypeError, match="ignore_index: expected an integer, got str"):
        segops.confusion_matrix(LABELS, LABELS, 3, "void")


def test_the_operator_guards_its_memory():
    with pytest.raises(RuntimeError, match=r"expected prediction \(N, P\) or \(N, C, P\)"):
        torch.ops.segops.confusion_matrix(LABELS[:1], LABELS, 3, None)
    with pytest.raises(RuntimeError, match="expected labels of uint8, int16, int32 or int64"):
        torch.ops.segops.confusion_matrix(LABELS, LABELS.bool(), 3, None)
