"""train, evaluate and predict as a user runs them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segops.cli import app
from segops.data.datasets import Scenes

SMALL = ("--model", "fcn", "--model-options", "encoder=resnet18", "--crop", "32", "32", "--batch-size", "16", "--workers", "0")  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def python(*arguments, **how):
    command = [sys.executable, "-m", "segops", *map(str, arguments)]
    return subprocess.Popen(command, **{"stdout": subprocess.PIPE, **how}, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scenes, "COUNTS", {"train": 16, "val": 3, "test": 3})
        result = run("train", *SMALL, "--epochs", 1, "--output", folder)
    return folder, result


def test_train_ends_with_scores_and_pictures(trained):
    folder, result = trained
    assert result.exit_code == 0, result.output
    assert "mean IoU" in result.output and "person" in result.output and "predictions.png" in result.output
    assert Image.open(folder / "predictions.png").size == (4 * 128 + 3 * 8, 3 * 96 + 2 * 8)
    assert all((folder / name).is_file() for name in ("curves.png", "best.ckpt", "last.ckpt", "recipe.yaml"))


def test_a_run_is_not_overwritten(trained):
    result = run("train", *SMALL, "--output", trained[0])
    assert result.exit_code == 1 and "--resume" in result.output
    assert "Traceback" not in result.output


def test_evaluate_writes_scores_the_matrix_and_the_worst(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Scenes, "COUNTS", {"train": 16, "val": 3, "test": 3})
    how = ("--tta", "--crf", "--crf-option", "iterations=2", "--window", 64, 64)
    plain, more = (run("evaluate", trained[0], "--split", "test", "--output", tmp_path / name, "--worst", 2, *options)
                   for name, options in (("plain", ()), ("more", how)))  # fmt: skip
    assert plain.exit_code == more.exit_code == 0, plain.output + more.output
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "more"))
    assert one["inference"] == "plain" and "mirrors; dense CRF" in other["inference"]
    assert one["mean_iou"] != other["mean_iou"]
    assert np.sum(one["confusion_matrix"]) == 3 * 96 * 128 and len(one["photos"]) == 3
    assert Image.open(tmp_path / "plain" / "worst.png").size == (4 * 128 + 3 * 8, 2 * 96 + 8)
    assert Image.open(tmp_path / "plain" / "confusion_matrix.png").size[0] > 300


def test_predict_goes_on_after_a_bad_photo(trained, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, size in enumerate([(40, 50), (33, 47)]):
        Image.fromarray(np.full((*size, 3), 90 * i, np.uint8)).save(photos / f"{i}.png")
    (photos / "bad.jpg").write_text("no photo")
    result = run("predict", trained[0], photos, "--output", tmp_path / "out", "--probabilities")
    assert result.exit_code == 1
    assert [line for line in result.output.splitlines() if line.startswith("error")] == [
        f"error: {photos}/bad.jpg: expected a picture, cannot identify image file '{photos}/bad.jpg'"
    ]
    labels = Image.open(tmp_path / "out" / "1_labels.png")
    assert (
        labels.mode == "P" and labels.size == (47, 33) and labels.getpalette()[:3] == Scenes("val").colours[0].tolist()
    )
    assert Image.open(tmp_path / "out" / "0_overlay.png").size == (50, 40)
    probabilities = np.load(tmp_path / "out" / "0.npy")
    assert probabilities.shape == (6, 40, 50) and np.allclose(probabilities.sum(0), 1, atol=0.01)
    assert (np.array(Image.open(tmp_path / "out" / "0_labels.png")) == probabilities.argmax(0)).mean() > 0.99
    assert run("predict", trained[0], photos / "0.png", "--output", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--data", "{tmp}/none"), "{tmp}/none: expected a file or folder"),
        (("train", "--model", "fnc"), "name: expected a model"),
        (("train", "--loss", "croos_entropy"), "loss: expected terms"),
        (("train", "--model-options", "encoder"), "encoder: expected NAME=VALUE"),
        (("train", "--recipe", "{tmp}/none.yaml"), "{tmp}/none.yaml: expected a recipe"),
        (("train", "--devices", "none"), "devices"),
        (("train", "--precision", "8-mixed"), "precision"),
        (("train", "--accelerator", "abacus"), "abacus"),
        (("train", "--strategy", "abacus"), "abacus"),
        (("train", "--resume", "{tmp}"), "resume: expected the folder of a run"),
        (("evaluate", "{tmp}"), "best.ckpt: expected a checkpoint"),
        (("predict", "{tmp}", "{tmp}"), "best.ckpt: expected a checkpoint"),
    ],
)
def test_one_clear_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*(str(a).format(tmp=tmp_path) for a in arguments))
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line]
    assert len(lines) == 1 and said.format(tmp=tmp_path) in lines[0]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--device", "abacus", "device: expected"), ("--crf-option", "colour=1", "colour"), ("--window", "0 0", "window")],
)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_bad_options_of_inference(command, option, value, said, trained, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    what = (tmp_path / "photo.png",) if command == "predict" else ()
    result = run(command, trained[0], *what, "--crf", option, *value.split(), "--output", tmp_path / "out")
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and said in lines[0], result.output


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
    log = tmp_path / "log"  # a pipe that nobody reads would be full after some epochs
    with log.open("w") as file:
        process = python("train", *SMALL, "--epochs", 200, "--output", tmp_path / "run", stdout=file)
    until = time.monotonic() + 200
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    # A signal that comes while Python runs a destructor is lost, as it is for whoever presses Ctrl-C: they press again.
    # They don't once it has answered: one that comes while Python ends kills it.
    pressed = 0.0
    while "interrupted" not in log.read_text() and process.poll() is None and time.monotonic() < until:
        if time.monotonic() > pressed + 15:
            process.send_signal(signal.SIGINT)
            pressed = time.monotonic()
        time.sleep(0.1)
    assert process.wait(60) == 130, log.read_text()[-3000:]
    assert f"interrupted; go on with: python -m segops train --resume {tmp_path}/run" in log.read_text()


def test_a_full_disk_is_said_in_one_line(tmp_path):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # no file of more than a megabyte

    options = ("--epochs", 1, "--output", tmp_path / "run")
    process = python("train", *SMALL, *options, preexec_fn=small_files, env={**os.environ, "COLUMNS": "300"})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"error: [Errno 27] {tmp_path}/run: could not write checkpoints or logs: File too large" in output
    assert "Traceback" not in output
