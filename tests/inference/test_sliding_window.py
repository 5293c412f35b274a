"""segops.inference.sliding_window: exact where the answer is known, and the same in every way that it can be run."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segops.inference import _windows, sliding_window

SIZES = st.tuples(st.integers(1, 13), st.integers(1, 13))


class Where(nn.Module):
    """Logits that depend on the place in the window, so that weights and order matter; counts its calls."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes, self.batches = classes, []

    def forward(self, x):
        self.batches.append(len(x))
        ramp = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)[:, None] + torch.linspace(
            0, 2, x.shape[3], dtype=x.dtype
        )
        return torch.stack([x[:, 0] * (c + 1) + ramp * (c - 1) for c in range(self.classes)], 1)


def slow(model, image, window, stride, weight="uniform", merge="logit"):
    """The definition: full-size sums, one window after another, in float64."""
    n, _, height, width = image.shape
    h, w = window
    padded = torch.zeros(n, image.shape[1], max(height, h), max(width, w), dtype=image.dtype)
    padded[:, :, :height, :width] = image
    sums = counts = 0
    for top in sorted({min(i, padded.shape[2] - h) for i in range(0, padded.shape[2] - h + stride[0], stride[0])}):
        for left in sorted({min(j, padded.shape[3] - w) for j in range(0, padded.shape[3] - w + stride[1], stride[1])}):
            out = model(padded[:, :, top : top + h, left : left + w]).detach().double()
            out = out.softmax(1) if merge == "probability" else out
            i, j = (torch.arange(s).double() - (s - 1) / 2 for s in (h, w))
            bell = torch.exp(-32 * ((i[:, None] / h) ** 2 + (j / w) ** 2)) if weight == "gaussian" else torch.ones(h, w)
            place = (slice(None), slice(None), slice(top, top + h), slice(left, left + w))
            if isinstance(sums, int):
                sums, counts = torch.zeros(n, out.shape[1], *padded.shape[2:]).double(), torch.zeros_like(padded[0, 0])
                counts = counts.double()
            sums[place] += out * bell
            counts[place[2:]] += bell
    return (sums / counts)[:, :, :height, :width]


@settings(max_examples=20, deadline=None)
@given(SIZES, SIZES, st.integers(1, 2), st.sampled_from(["uniform", "gaussian"]), st.integers(1, 5), st.data())
def test_is_its_definition(size, window, images, weight, batch_size, data):
    stride = tuple(data.draw(st.integers(1, w)) for w in window)
    image, model = torch.randn(images, 2, *size, dtype=torch.float64), Where()
    for merge in ("logit", "probability"):
        options = {"window": window, "stride": stride, "weight": weight, "merge": merge}
        out = sliding_window(model, image, batch_size=batch_size, **options)
        expected = slow(model, image, window, stride, weight, merge)
        torch.testing.assert_close(out.softmax(1) if merge == "probability" else out, expected)
        labels = sliding_window(model, image, batch_size=batch_size, labels=True, **options)
        assert labels.dtype == torch.uint8
        assert torch.equal(labels.long(), out.argmax(1)), "the same sums, row by row"


@pytest.mark.parametrize("weight", ["uniform", "gaussian"])
@pytest.mark.parametrize("size", [(5, 40), (37, 41), (16, 16), (3, 2)])
def test_a_model_of_pixels_does_not_see_the_windows(size, weight):
    model, image = nn.Conv2d(3, 4, 1), torch.randn(2, 3, *size)
    out = sliding_window(model, image, window=16, stride=(7, 11), weight=weight, batch_size=3)
    torch.testing.assert_close(out, model(image).detach())
    assert not out.requires_grad


def test_weights():
    for window in (1, 2, 9, 512):
        side = _windows.profile(window, "gaussian")
        assert side.max() == 1
        assert (side > 3e-4).all()
        torch.testing.assert_close(side, side.flip(0))
        for length in (window, window + 1, 3 * window + 2):
            begins = _windows.starts(length, window, max(window // 2, 1))
            covered = _windows.total(length, begins, side)
            assert begins[0] == 0 and begins[-1] == length - window
            torch.testing.assert_close(covered.sum(), len(begins) * side.sum())
            assert (covered > 0).all()


def test_batches_cross_rows_and_images():
    model, image = Where(), torch.randn(2, 1, 9, 9)
    expected = sliding_window(model, image, window=4, stride=3)
    model.batches.clear()
    out = sliding_window(model, image, window=4, stride=3, batch_size=5)
    assert model.batches == [5] * 3 + [3]
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


class Mode(nn.Module):
    """In training mode, wrong."""

    def __init__(self):
        super().__init__()
        self.frozen, self.live = nn.BatchNorm2d(2).eval(), nn.Dropout(0.9)

    def forward(self, x):
        assert not torch.is_grad_enabled()
        return self.live(self.frozen(x))


def test_the_model_is_evaluated_and_left_as_it_was():
    model, image = Mode(), torch.randn(1, 2, 9, 9)
    model.live.train()
    modes = [m.training for m in model.modules()]
    torch.testing.assert_close(sliding_window(model, image, window=5), image, rtol=1e-4, atol=1e-5)
    assert [m.training for m in model.modules()] == modes == [True, False, True]
    with pytest.raises(ValueError, match="model: expected"):
        sliding_window(nn.Sequential(model, nn.Flatten()), image, window=5)
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_stores(tmp_path):
    model, image = Where(), torch.randn(2, 1, 11, 9)
    expected = sliding_window(model, image, window=4)
    assert torch.equal(sliding_window(model, image, window=4, store="cpu", device="cpu"), expected)
    assert torch.equal(sliding_window(model, image, window=4, store=torch.device("cpu")), expected)
    for path in (tmp_path / "logits.npy", str(tmp_path / "more.npy")):
        out = sliding_window(model, image, window=4, store=path)
        assert torch.equal(out, expected)
        assert (np.load(path, mmap_mode="r") == expected.numpy()).all()
    sliding_window(model, image, window=4, labels=True, store=tmp_path / "labels.npy")
    assert np.load(tmp_path / "labels.npy").dtype == np.uint8


def test_labels_never_hold_the_logits_of_the_whole_image(monkeypatch):
    held = []
    band = _windows.Band.__init__

    def watched(self, *arguments):
        band(self, *arguments)
        held.append(self.sums.shape)

    monkeypatch.setattr(_windows.Band, "__init__", watched)
    labels = sliding_window(Where(7), torch.randn(1, 1, 500, 20), window=8, labels=True)
    assert labels.shape == (1, 500, 20)
    assert held == [(1, 7, 8, 20)]


def test_one_class_and_many():
    image = torch.randn(1, 1, 9, 9)
    labels = sliding_window(lambda x: x, image, window=4, labels=True)
    assert torch.equal(labels, (image[:, 0] > 0).to(torch.uint8))
    out = sliding_window(lambda x: x, image, window=4, merge="probability")
    torch.testing.assert_close(out, image, rtol=1e-4, atol=1e-5)
    assert sliding_window(Where(257), image, window=4, labels=True).dtype == torch.int64


def test_coarse_logits_and_mappings():
    model, image = nn.AvgPool2d(2), torch.randn(1, 2, 8, 8)
    expected = nn.functional.interpolate(model(image), (8, 8), mode="bilinear")
    torch.testing.assert_close(sliding_window(lambda x: {"out": model(x)}, image, window=8), expected)
    expected = nn.functional.interpolate(model(image), (8, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(sliding_window(model, image, window=8, align_corners=True), expected)


def test_bytes_and_halves():
    image = torch.randint(0, 256, (1, 3, 5, 9), dtype=torch.uint8)
    out = sliding_window(lambda x: x.half() / 255, image, window=6)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (image.half() / 255).float())


def test_a_model_s_own_tensor_is_not_touched():
    image = torch.randn(1, 3, 8, 8)
    before = image.clone()
    sliding_window(lambda x: x, image, window=5)
    assert torch.equal(image, before)


def test_progress(monkeypatch):
    seen = []
    image = torch.randn(1, 1, 9, 9)
    sliding_window(Where(), image, window=4, stride=3, batch_size=4, progress=lambda *x: seen.append(x))
    assert seen == [(4, 9), (8, 9), (9, 9)]
    sliding_window(Where(), image, window=4, progress=True)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ModuleNotFoundError, match="progress=True needs rich"):
        sliding_window(Where(), image, window=4, progress=True)


IMAGE = torch.zeros(1, 3, 9, 9)
BAD = [
    (TypeError, "image: expected a tensor", Where(), None, {}),
    (ValueError, "image: expected 4 dimensions", Where(), IMAGE[0], {}),
    (ValueError, "image: expected no empty dimension", Where(), IMAGE[:0], {}),
    (TypeError, "model: expected a callable", 3, IMAGE, {}),
    (TypeError, "model: expected it to return a tensor", lambda x: [x], IMAGE, {}),
    (TypeError, "model: expected float64", lambda x: x.long(), IMAGE, {}),
    (ValueError, "model: expected it to return shape", lambda x: x[:, 0], IMAGE, {}),
    (ValueError, "window: expected integers >= 1", Where(), IMAGE, {"window": 0}),
    (ValueError, "window: expected one integer or two", Where(), IMAGE, {"window": (1, 2, 3)}),
    (ValueError, "stride: expected at most the window", Where(), IMAGE, {"stride": 5}),
    (ValueError, "stride: expected integers >= 1", Where(), IMAGE, {"stride": 0}),
    (ValueError, "weight: expected one of", Where(), IMAGE, {"weight": "hann"}),
    (ValueError, "merge: expected one of", Where(), IMAGE, {"merge": "vote"}),
    (ValueError, "batch_size: expected an integer >= 1", Where(), IMAGE, {"batch_size": 0}),
]


@pytest.mark.parametrize(("error", "message", "model", "image", "options"), BAD)
def test_bad_input(error, message, model, image, options):
    with pytest.raises(error, match=message):
        sliding_window(model, image, **{"window": 4, **options})
