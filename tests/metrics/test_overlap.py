"""Scores of confusion matrices: their definitions in plain Python, peers' numbers, absent classes, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segops import metrics

MATRIX = torch.tensor([[2, 1, 0, 0, 0], [0, 1, 0, 1, 0], [1, 0, 2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
SCORES = {"iou": metrics.iou, "dice": metrics.dice, "class_accuracy": metrics.class_accuracy}


def divided(a: float, b: float) -> float:
    return a / b if b else math.nan


def plain(m: list[list[int]]) -> dict[str, list[float] | float]:
    """The definitions, class after class."""
    classes = range(len(m))
    target, predicted = [sum(m[c]) for c in classes], [sum(row[c] for row in m) for c in classes]
    everything = sum(target)
    iou = [divided(m[c][c], target[c] + predicted[c] - m[c][c]) for c in classes]
    return {
        "iou": iou,
        "dice": [divided(2 * m[c][c], target[c] + predicted[c]) for c in classes],
        "class_accuracy": [divided(m[c][c], target[c]) for c in classes],
        "pixel_accuracy": divided(sum(m[c][c] for c in classes), everything),
        "frequency_weighted_iou": divided(sum(target[c] * iou[c] for c in classes if target[c]), everything),
    }


def mean(scores: list[float], absent: str) -> float:
    spare = {"ignore": [], "zero": [0.0], "one": [1.0]}[absent]
    kept = [x for s in scores for x in ([s] if not math.isnan(s) else spare)]
    return divided(sum(kept), len(kept))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), classes=st.integers(1, 6))
def test_definitions(data, classes):
    """Matrices with many zeros, so that classes are absent in all ways."""
    entry = st.sampled_from([0, 0, 0, 1, 7, 10**9])
    m = data.draw(st.lists(st.lists(entry, min_size=classes, max_size=classes), min_size=classes, max_size=classes))
    matrix, expected = torch.tensor(m), plain(m)
    for name, value in expected.items():
        actual = getattr(metrics, name)(matrix)
        torch.testing.assert_close(actual, torch.tensor(value, dtype=torch.float64), rtol=1e-10, atol=0, equal_nan=True)
    for name, score in (("mean_iou", "iou"), ("mean_dice", "dice"), ("mean_accuracy", "class_accuracy")):
        for absent in ("ignore", "zero", "one"):
            actual = getattr(metrics, name)(matrix, absent).item()
            assert actual == pytest.approx(mean(expected[score], absent), rel=1e-10, nan_ok=True)


def test_torchmetrics_numbers():
    """Of multiclass_jaccard_index, multiclass_f1_score and multiclass_accuracy (1.9), where class 4 is absent."""
    torch.testing.assert_close(metrics.iou(MATRIX)[:4], torch.tensor([1 / 2, 1 / 3, 1 / 2, 0]).double())
    assert metrics.mean_iou(MATRIX).item() == pytest.approx(0.3333, abs=1e-4)  # average="macro"
    assert metrics.mean_dice(MATRIX).item() == pytest.approx(0.4583, abs=1e-4)
    assert metrics.frequency_weighted_iou(MATRIX).item() == pytest.approx(0.4630, abs=1e-4)  # average="weighted"
    assert metrics.pixel_accuracy(MATRIX).item() == pytest.approx(0.5556, abs=1e-4)  # average="micro"
    # It averages the accuracy over classes that are in the target or predicted, class 3 as 0; we over those in the target.
    assert metrics.mean_accuracy(MATRIX[:4, :4], "zero").item() == pytest.approx(0.4167, abs=1e-4)
    assert metrics.mean_accuracy(MATRIX).item() == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)


def test_no_pixel_at_all():
    nothing = torch.zeros(3, 3, dtype=torch.int64)
    assert metrics.iou(nothing).isnan().all()
    assert metrics.mean_iou(nothing).isnan() and metrics.pixel_accuracy(nothing).isnan()
    assert metrics.mean_iou(nothing, "one") == 1 and metrics.mean_iou(nothing, "zero") == 0


@pytest.mark.parametrize("name", [*SCORES, "pixel_accuracy", "frequency_weighted_iou", "mean_iou"])
def test_several_matrices_at_once(name):
    matrices = torch.randint(0, 9, (2, 3, 4, 4))
    score = getattr(metrics, name)
    expected = torch.stack([torch.stack([score(m) for m in row]) for row in matrices])
    torch.testing.assert_close(score(matrices), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.ones(2, 3), ValueError, r"matrix: expected shape \(..., C, C\) with C >= 1, got \(2, 3\)"),
        (torch.ones(4), ValueError, r"matrix: expected shape \(..., C, C\)"),
        (torch.ones(0, 0), ValueError, r"matrix: expected shape \(..., C, C\)"),
        (torch.ones(2, 2).bool(), TypeError, "matrix: expected counts, got torch.bool"),
        (np.ones((2, 2)), TypeError, r"matrix: expected a tensor \(..., C, C\), got ndarray"),
    ],
)
@pytest.mark.parametrize("name", [*SCORES, "pixel_accuracy", "frequency_weighted_iou", "mean_iou"])
def test_bad_matrices(name, matrix, error, message):
    with pytest.raises(error, match=message):
        getattr(metrics, name)(matrix)


def test_bad_policy():
    with pytest.raises(ValueError, match="absent: expected one of 'ignore', 'zero', 'one', got 'nan'"):
        metrics.mean_iou(MATRIX, "nan")
    with pytest.raises(TypeError, match="scores: expected float64, float32, bfloat16 or float16, got torch.int64"):
        metrics.mean_over_classes(torch.ones(3, dtype=torch.int64))
