"""Boundary IoU, boundary F and trimap IoU against their definitions, pixel after pixel and by SciPy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segops import metrics

IGNORE = 255
CLASSES = 3


@st.composite
def batches(draw):
    """Predictions and targets in squares, some of them ignored."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    n, height, width = draw(st.integers(0, 2)), draw(st.integers(1, 18)), draw(st.integers(1, 18))
    size, classes = draw(st.sampled_from([1, 3, 6])), draw(st.integers(1, CLASSES))

    def squares(high: int) -> torch.Tensor:
        labels = torch.randint(0, high, (n, height // size + 1, width // size + 1), generator=g)
        return labels.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :height, :width]

    target = squares(classes)
    prediction = torch.where(torch.rand(target.shape, generator=g) < 0.2, squares(classes), target)
    if draw(st.booleans()):
        target = target.masked_fill(squares(4) == 0, IGNORE)
    return prediction, target


def assert_close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12, equal_nan=True
    )


def divided(a: float, b: float) -> float:
    return a / b if b else math.nan


def inner_band(mask, ratio: float, distance: str):
    """The published definition: a mask without what is left of it after d erosions, all outside being background."""
    d = max(1, round(ratio * math.hypot(*mask.shape)))
    if distance == "chessboard":
        return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 2), iterations=d)
    outside = torch.nn.functional.pad(torch.from_numpy(mask), (1, 1, 1, 1)).numpy()
    return mask & (ndimage.distance_transform_edt(outside)[1:-1, 1:-1] <= d)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from(["chessboard", "euclidean"]))
def test_boundary_iou_is_the_published_one_of_each_class(batch, ratio, distance):
    expected = []
    for c in range(CLASSES):
        both = either = 0
        for p, t in zip(*batch, strict=True):
            a, b = (inner_band(((x == c) & (t != IGNORE)).numpy(), ratio, distance) for x in (p, t))
            both, either = both + (a & b).sum(), either + (a | b).sum()
        expected.append(divided(both, either))
    assert_close(metrics.boundary_iou(*batch, CLASSES, ratio=ratio, distance=distance), expected)


def contour(labels, c: int) -> list[tuple[int, int]]:
    """Pixels of class c with a neighbour that is another class."""
    height, width = labels.shape
    around = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return [
        (y, x)
        for y, x in (labels == c).nonzero().tolist()
        if any(
            0 <= y + i < height and 0 <= x + j < width and labels[y + i, x + j] not in (c, IGNORE) for i, j in around
        )
    ]


def matched(some, others, reach: float) -> float:
    return divided(sum(any(math.dist(a, b) <= reach for b in others) for a in some), len(some))


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from([0.0075, 0.05, 0.2]))
def test_boundary_f_is_its_definition(batch, tolerance):
    expected = []
    for c in range(CLASSES):
        scores = []
        for p, t in zip(*batch, strict=True):
            reach = tolerance * math.hypot(*t.shape)
            a, b = contour(p.masked_fill(t == IGNORE, IGNORE), c), contour(t, c)
            if a or b:
                precision, recall = matched(a, b, reach), matched(b, a, reach)
                f = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
                scores.append(f)
        expected.append(divided(sum(scores), len(scores)))
    assert_close(metrics.boundary_f(*batch, CLASSES, tolerance=tolerance), expected)


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from([1.0, 2.5, 30.0]))
def test_trimap_iou_is_its_definition(batch, width):
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for p, t in zip(*batch, strict=True):
        for y, x in (t != IGNORE).nonzero().tolist():
            others = (t != t[y, x]).nonzero().tolist()
            if any(math.dist((y, x), other) <= width for other in others):
                matrix[t[y, x], p[y, x]] += 1
    assert_close(metrics.trimap_iou(*batch, CLASSES, width=width), metrics.iou(matrix).tolist())


SQUARE = torch.zeros(1, 64, 64, dtype=torch.int64)
SQUARE[:, 16:48, 16:48] = 1


def test_numbers_by_hand():
    """A square moved by a pixel. Bands of 2 pixels share 180 of 300; contours of 124 pixels share 62; within a pixel of
    the boundary are 124 + 128 pixels of the target, of which 32 and 32 changed class."""
    moved = SQUARE.roll(1, 2)
    assert metrics.boundary_iou(moved, SQUARE, 2)[1] == 180 / 300
    assert metrics.boundary_f(moved, SQUARE, 2)[1] == 62 / 124
    assert metrics.boundary_f(moved, SQUARE, 2, tolerance=0.02)[1] == 1
    assert metrics.trimap_iou(moved, SQUARE, 2, width=1)[1] == (124 - 32) / (124 + 32)


CALLS = {
    "boundary_iou": metrics.boundary_iou,
    "boundary_f": metrics.boundary_f,
    "trimap_iou": lambda *args: metrics.trimap_iou(*args, width=3),
}


@pytest.mark.parametrize("name", CALLS)
def test_perfect_predictions_ignored_ones_and_absent_classes(name):
    call = CALLS[name]
    assert call(SQUARE, SQUARE, 3).tolist() == pytest.approx([1, 1, math.nan], nan_ok=True)
    assert call(SQUARE, torch.full_like(SQUARE, 255), 3).isnan().all()
    half = SQUARE.clone()
    half[..., 30:] = 255
    other = SQUARE.clone()
    other[..., 30:] = 99  # where nobody looks
    assert call(other, half, 2).tolist() == [1, 1]
    assert call(SQUARE[:0], SQUARE[:0], 2).isnan().all()


@pytest.mark.parametrize("name", CALLS)
def test_logits_and_other_dtypes(name):
    labels, target = torch.randint(0, 4, (2, 12, 15)), torch.randint(0, 4, (2, 12, 15))
    target[0, :3] = 255
    logits = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).half()
    expected = CALLS[name](labels, target, 4)
    torch.testing.assert_close(CALLS[name](logits, target.to(torch.uint8), 4), expected, equal_nan=True)
    torch.testing.assert_close(CALLS[name](labels.int(), target.short(), 4), expected, equal_nan=True)
    wide = CALLS[name](labels, target.masked_fill(target == 255, -100), 300, -100)
    torch.testing.assert_close(wide[:4], expected, equal_nan=True)


@pytest.mark.parametrize("name", CALLS)
def test_bad_labels(name):
    with pytest.raises(ValueError, match=r"target: expected 3 dimensions \(N, H, W\), got shape \(64, 64\)"):
        CALLS[name](SQUARE[0], SQUARE[0], 2)
    with pytest.raises(ValueError, match="prediction: expected labels from 0 to 1, got 2"):
        CALLS[name](SQUARE + 1, SQUARE, 2)
    with pytest.raises(ValueError, match="target: expected labels from 0 to 1 or ignore_index = 255, got 2"):
        CALLS[name](SQUARE, SQUARE + 1, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: metrics.BoundaryIoU(0), ValueError, "num_classes: expected an integer >= 1, got 0"),
        (lambda: metrics.BoundaryIoU(2, "void"), TypeError, "ignore_index: expected an integer, got str"),
        (lambda: metrics.BoundaryIoU(2, ratio=0), ValueError, "ratio: expected a finite number > 0, got 0"),
        (lambda: metrics.BoundaryIoU(2, distance="taxi"), ValueError, "distance: expected one of 'chessboard', 'eu"),
        (lambda: metrics.BoundaryF(2, tolerance=math.nan), ValueError, "tolerance: expected a finite number > 0, got"),
        (lambda: metrics.TrimapIoU(2, width="3"), TypeError, "width: expected a number, got str"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()
