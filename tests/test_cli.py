"""The command line: exit codes, what it prints, and the picture that the demo writes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import typer
from PIL import Image
from typer.testing import CliRunner

import segops
from segops import _backends
from segops.cli import app
from segops.cli.demo import busiest, duration, load
from segops.cli.picture import GAP, draw, place
from segops.data import ASTRONAUT, palette

# A piece of the photo with head, suit and background in it.
CROP = np.s_[120:168, 150:214]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with photo.png, 64 x 48, and its coarse labelling labels.png, partly unlabelled."""
    folder = tmp_path_factory.mktemp("tiny")
    photo, labels, _ = load(None, None, None)
    labels = labels[CROP].astype(np.uint8)
    labels[20:24, 30:40] = 255
    Image.fromarray(np.ascontiguousarray(photo[CROP])).save(folder / "photo.png")
    Image.fromarray(labels).save(folder / "labels.png")
    Image.fromarray(labels[:40]).save(folder / "short.png")
    Image.fromarray(labels[..., None].repeat(3, 2)).save(folder / "colour.png")
    Image.fromarray(np.where(labels == 255, labels, 0).astype(np.uint8)).save(folder / "one.png")
    Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)).save(folder / "many.png")
    (folder / "text.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def tiny_run(tiny):
    return run("demo", "--image", tiny / "photo.png", "--labels", tiny / "labels.png", "--output", tiny / "out.png")


def test_demo_says_what_ran_and_where_the_picture_is(tiny, tiny_run):
    assert tiny_run.exit_code == 0, tiny_run.output
    lines = tiny_run.output.splitlines()
    for start in ("photo", "backend", "time", "labels", "exact"):
        assert sum(line.startswith(start) for line in lines) == 1, tiny_run.output
    assert "64 x 48" in lines[0]
    assert lines[-1].startswith("Refined 3 labels of 64 x 48 pixels in ")
    assert str(tiny / "out.png") in lines[-1]


def test_demo_compares_lattice_and_exact(tiny_run):
    (line,) = [line for line in tiny_run.output.splitlines() if line.startswith("exact")]
    assert float(line.split("same label on ")[1].split("%")[0]) > 95
    assert float(line.split("differ by ")[1].split()[0]) < 0.05


def test_demo_draws_four_panels(tiny, tiny_run):
    assert tiny_run.exit_code == 0
    picture = Image.open(tiny / "out.png").convert("RGB")
    pixels = np.asarray(picture)
    panel_h, panel_w, top = 240, 320, 32  # the photo five times as large, below a title of twice the font size of 16
    assert picture.width == GAP + 4 * (panel_w + GAP)
    assert picture.height > top + panel_h + GAP
    assert (pixels[top + 2 : top + panel_h : 5, GAP + 2 : GAP + panel_w : 5] == skimage.data.astronaut()[CROP]).all()
    assert (pixels[:4] == 255).all(), "nothing may reach the border"
    assert (pixels[-4:] == 255).all()
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, -4:] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.png", "--labels", "labels.png"], "--image missing.png does not exist"),
        (["--image", "text.png", "--labels", "labels.png"], "--image text.png can not be read as a picture"),
        (["--image", "photo.png"], "--image needs --labels"),
        (["--image", "photo.png", "--labels", "missing.png"], "--labels missing.png does not exist"),
        (
            ["--image", "photo.png", "--labels", "short.png"],
            "is 64 x 40 pixels, expected the size of the photo, 64 x 48",
        ),
        (["--image", "photo.png", "--labels", "colour.png"], "is a colour picture (RGB)"),
        (["--image", "photo.png", "--labels", "one.png"], "holds 1 label"),
        (["--image", "photo.png", "--labels", "many.png"], "holds 255 labels"),
        (["--image", "photo.png", "--labels", "labels.png", "--names", "a,b"], "--names has 2 names"),
        (["--image", "photo.png", "--labels", "labels.png", "--output", "no/such/folder.png"], "there is no folder"),
        (["--image", "photo.png", "--labels", "labels.png", "--device", "toaster"], "got toaster"),
        (["--image", "photo.png", "--labels", "labels.png", "--bilateral-sigma-rgb", "-1"], "bilateral_sigma_rgb"),
    ],
)
def test_demo_answers_bad_input_with_one_sentence(tiny, monkeypatch, arguments, message):
    monkeypatch.chdir(tiny)
    result = run("demo", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_shipped_labelling_fits_the_photo():
    photo, labels, names = load(None, None, None)
    assert photo.shape == (*labels.shape, 3)
    assert tuple(names) == ASTRONAUT
    assert np.unique(labels).tolist() == list(range(len(ASTRONAUT)))


def test_labels_need_not_be_consecutive(tiny, tmp_path):
    labels = np.full((48, 64), 7, np.uint8)
    labels[:, 40:] = 200
    labels[0] = 255
    Image.fromarray(labels).save(tmp_path / "gaps.png")
    _, coarse, names = load(tiny / "photo.png", tmp_path / "gaps.png", None)
    assert names == ["label 7", "label 200"]
    assert (coarse[0] == 255).all()
    assert (coarse[1:, :40] == 0).all()
    assert (coarse[1:, 40:] == 1).all()
    assert load(tiny / "photo.png", tmp_path / "gaps.png", "cat, mat")[2] == ["cat", "mat"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (700, 900)])
def test_any_shape_can_be_drawn(tmp_path, shape):
    labels = np.zeros(shape, np.int64)
    draw(np.zeros((*shape, 3), np.uint8), labels, labels, np.ones(shape), ["a", "b"], tmp_path / "out.png")
    pixels = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[:, [0, -1]] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_the_legend_wraps():
    places = place(["background"] * 7, font=10, width=300)
    assert [row for _, row in places] == [0, 0, 0, 1, 1, 1, 2]
    assert [x for x, _ in places[:3]] == [x for x, _ in places[3:6]]


def test_the_window_of_the_comparison_is_where_doubt_is():
    doubt = np.zeros((50, 90))
    doubt[30:40, 70:80] = 1
    y, x = busiest(doubt, 20)
    assert doubt[y, x].sum() == 100
    assert busiest(doubt[:10, :5], 20) == (slice(0, 10), slice(0, 5))


def test_durations_are_for_people():
    assert [duration(s) for s in (0.00312, 0.143, 2.06)] == ["3.1 ms", "143 ms", "2.1 s"]


def test_colours_differ():
    assert len(np.unique(palette(40), axis=0)) == 40
    assert (palette(3) == palette(12)[:3]).all()
    assert palette(0).shape == (0, 3)


def test_info():
    facts = json.loads(run("info", "--json").stdout)
    assert facts["versions"]["segops"] == segops.__version__
    assert set(facts["libraries"]) == {"_C", "_C_cuda", "_host"}
    assert facts["machine"]["threads"] >= 1
    text = run("info")
    assert text.exit_code == 0
    for word in ("torch", "isa", "_C_cuda", "devices"):
        assert word in text.stdout


def test_ops():
    listed = json.loads(run("ops", "--json").stdout)
    operators = {row["operator"]: row["backends"] for row in listed}
    assert {"mean_field", "permutohedral_filter", "gaussian_filter_exact"} <= set(operators)
    assert all(backends["reference"] is None for backends in operators.values())
    text = run("ops")
    assert text.exit_code == 0
    for name, backends in _backends.table():
        assert name in text.stdout
        for reason in filter(None, backends.values()):
            assert reason in text.stdout


@pytest.mark.parametrize("command", ["ops", "demo"])
def test_an_unknown_backend_is_one_sentence(command):
    result = subprocess.run(
        [sys.executable, "-m", "segops", command],
        env={**os.environ, "SEGOPS_BACKEND": "toaster"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: SEGOPS_BACKEND: expected one of ")
    assert len(result.stderr.splitlines()) == 1


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "segops", "ops", "--json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


def test_help_imports_nothing_heavy():
    result = python(
        "import segops.cli, sys; print(sorted({'torch', 'matplotlib', 'PIL', 'skimage', 'lightning', 'timm'} & set(sys.modules)))"
    )
    assert result.stdout.strip() == "[]", result.stderr
    names = ["bench", "demo", "evaluate", "info", "models", "ops", "predict", "train"]
    assert typer.main.get_command(app).list_commands(None) == names


def test_without_typer_it_says_what_to_install():
    result = python("import sys; sys.modules['typer'] = None; from segops.__main__ import main; main()")
    assert result.returncode == 1
    assert "needs typer" in result.stderr
    assert "segops[cli]" in result.stderr
    assert "Traceback" not in result.stderr
