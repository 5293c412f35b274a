"""segops.viz: palettes, colours, overlays, panels and error maps."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segops import viz

LABELS = np.array([[0, 1, 2], [2, 255, 1]])
VOC = viz.palette("voc")


@pytest.mark.parametrize(
    ("name", "classes", "known"),
    [
        ("voc", 21, {1: (128, 0, 0), 5: (128, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}),
        ("cityscapes", 19, {0: (128, 64, 128), 10: (70, 130, 180), 13: (0, 0, 142), 18: (119, 11, 32)}),
        ("camvid", 11, {0: (128, 128, 128), 3: (128, 64, 128), 10: (0, 128, 192)}),
        ("ade20k", 150, {0: (120, 120, 120), 2: (6, 230, 230), 149: (92, 0, 255)}),
        ("distinct", 21, {0: (138, 141, 153)}),
    ],
)
def test_palettes(name, classes, known):
    colours = viz.palette(name)
    assert colours.shape == (classes, 3)
    assert colours.dtype == np.uint8
    assert {k: tuple(colours[k].tolist()) for k in known} == known
    # ADE20K gives road and skyscraper the same grey
    assert len(np.unique(colours, axis=0)) == classes - (name == "ade20k")
    assert (viz.palette(name, 7) == colours[:7]).all()
    colours[:] = 0
    assert viz.palette(name).any(), "the caller's copy is the caller's"


def test_voc_has_256_colours_of_which_the_last_is_the_border():
    colours = viz.palette("voc", 256)
    assert colours[255].tolist() == [224, 224, 192]
    assert len(np.unique(colours, axis=0)) == 256


@pytest.mark.parametrize(("name", "classes"), [("kitti", None), ("cityscapes", 20), ("voc", 257), ("voc", -1)])
def test_palettes_that_there_are_not(name, classes):
    with pytest.raises(ValueError, match="expected"):
        viz.palette(name, classes)


def test_colorize():
    out = viz.colorize(LABELS, VOC, ignore_colour=(1, 2, 3))
    assert out.dtype == np.uint8
    assert (out[LABELS != 255] == VOC[LABELS[LABELS != 255]]).all()
    assert out[1, 1].tolist() == [1, 2, 3]
    assert (viz.colorize(LABELS.astype(np.uint8), VOC) == viz.colorize(LABELS, VOC)).all()
    assert viz.colorize(LABELS == 1, VOC).any(2).tolist() == (LABELS == 1).tolist()


def test_overlay_mixes_and_leaves_alone_what_has_no_label():
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    labelled = LABELS != 255
    for alpha in (0.0, 0.3, 1.0):
        out = viz.overlay(image, LABELS, VOC, alpha=alpha)
        assert (out[~labelled] == image[~labelled]).all()
        exact = alpha * VOC[LABELS[labelled]] + (1 - alpha) * image[labelled].astype(float)
        assert np.abs(out[labelled] - exact).max() <= 0.5
    assert (viz.overlay(image, LABELS, VOC, alpha=0) == image).all()


def test_shade_keeps_light_and_dark():
    image = np.full((2, 3, 3), 80, np.uint8)
    dark, light = (viz.shade(image * k, LABELS, VOC).astype(int) for k in (1, 3))
    assert (light[LABELS == 1, 0] > dark[LABELS == 1, 0]).all()
    assert (dark[1, 1] == 80).all()


def test_error_map():
    prediction = np.array([[0, 1, 0], [2, 2, 1]])
    out = viz.error_map(prediction, LABELS, right=(1, 1, 1), wrong=(2, 2, 2), ignored=(3, 3, 3))
    assert out[..., 0].tolist() == [[1, 1, 2], [1, 3, 1]]


def test_panel_places_every_picture():
    pictures = [np.full((4, 5, 3), 10, np.uint8), np.full((3, 6), 20, np.uint8), np.full((2, 2), 30, np.uint8)]
    row = viz.panel(pictures, gap=2, background=(9, 9, 9))
    assert row.shape == (4, 3 * 6 + 2 * 2, 3)
    assert (row[:4, :5] == 10).all() and (row[:3, 8:14] == 20).all() and (row[:2, 16:18] == 30).all()
    assert (row == 9).sum() == row.size - 3 * (20 + 18 + 4)
    grid = viz.panel(pictures, columns=2, gap=1)
    assert grid.shape == (9, 13, 3)
    assert (grid[5:7, :2] == 30).all() and (grid[5:, 7:] == 255).all()


def test_save(tmp_path):
    picture = viz.colorize(LABELS, VOC)
    viz.save(tmp_path / "labels.png", picture)
    assert (np.asarray(Image.open(tmp_path / "labels.png")) == picture).all()


def test_needs_no_torch():
    code = "import segops, sys; segops.viz.palette('voc'); sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


IMAGE = np.zeros((2, 3, 3), np.uint8)
BAD = [
    (TypeError, "labels: expected integer", lambda: viz.colorize(LABELS / 2, VOC)),
    (ValueError, "labels: expected shape", lambda: viz.colorize(LABELS[0], VOC)),
    (
        ValueError,
        "labels: expected 0 to 20, one for each colour, or 255, got 21",
        lambda: viz.colorize(LABELS * 0 + 21, VOC),
    ),
    (ValueError, "got -1", lambda: viz.colorize(LABELS * 0 - 1, VOC)),
    (TypeError, "palette: expected uint8", lambda: viz.colorize(LABELS, VOC / 255)),
    (ValueError, "palette: expected shape", lambda: viz.colorize(LABELS, VOC[:0])),
    (TypeError, "image: expected uint8", lambda: viz.overlay(IMAGE / 255, LABELS, VOC)),
    (ValueError, "image: expected shape", lambda: viz.overlay(IMAGE[..., :2], LABELS, VOC)),
    (ValueError, "labels: expected .* pixels like image", lambda: viz.shade(IMAGE, LABELS.T, VOC)),
    (ValueError, "alpha: expected", lambda: viz.overlay(IMAGE, LABELS, VOC, alpha=2)),
    (ValueError, "prediction: expected .* pixels like target", lambda: viz.error_map(LABELS.T, LABELS)),
    (ValueError, "pictures: expected at least one", lambda: viz.panel([])),
    (ValueError, "columns, gap", lambda: viz.panel([IMAGE], columns=0)),
    (ValueError, "columns, gap", lambda: viz.panel([IMAGE], gap=1.5)),
    (ValueError, "alpha: expected .*, got 'half'", lambda: viz.overlay(IMAGE, LABELS, VOC, alpha="half")),
    (ValueError, "background: expected three integers", lambda: viz.panel([IMAGE], background=(0, 0, 256))),
    (ValueError, "ignore_colour: expected three", lambda: viz.colorize(LABELS, VOC, ignore_colour=(0, 0))),
    (ValueError, "wrong: expected three", lambda: viz.error_map(LABELS, LABELS, wrong="red")),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()
