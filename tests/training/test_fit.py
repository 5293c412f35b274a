"""Training on drawn streets: repeatable, resumable, the same with two processes as with one."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from segops.data.datasets import Scenes
from segops.data.files import DataError
from segops.training import Recipe
from segops.training.evaluation import Inference, evaluate, segment
from segops.training.fit import BEST, LAST, fit, load_task
from segops.training.pictures import read_log
from segops.training.task import SegmentationTask

SMALL = {
    "model": "fcn",
    "model_options": {"encoder": "resnet18", "output_stride": 32},
    "epochs": 2,
    "crop": (32, 64),
    "workers": 0,
    "accelerator": "cpu",
}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(Scenes, "COUNTS", {"train": 16, "val": 3, "test": 3})


def log(output):
    """The values of each column, epoch by epoch."""
    return {key: list(values.values()) for key, values in read_log(output).items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scenes, "COUNTS", {"train": 16, "val": 3, "test": 3})
        output = tmp_path_factory.mktemp("run")
        fit(Recipe(**SMALL), output, progress=False)
    return output


def test_a_run_can_be_repeated_in_any_number_of_loading_processes(run, tmp_path):
    fit(Recipe(**{**SMALL, "workers": 2, "cache": True}), tmp_path, progress=False)
    assert log(tmp_path)["train/loss"] == log(run)["train/loss"]
    assert log(tmp_path)["val/mean_iou"] == log(run)["val/mean_iou"]
    fit(Recipe(**{**SMALL, "seed": 1, "epochs": 1}), tmp_path / "other", progress=False)
    assert log(tmp_path / "other")["train/loss"][0] != log(run)["train/loss"][0]


@pytest.mark.parametrize("validate_every", [1, 2])  # with 2, the epoch before the interrupt was not validated
def test_resumed_after_an_interrupt_it_ends_as_it_would_have(validate_every, run, tmp_path, monkeypatch):
    recipe = Recipe(**SMALL, validate_every=validate_every)
    with monkeypatch.context() as patch:

        def stop(self):
            if self.current_epoch == 1:
                raise KeyboardInterrupt

        patch.setattr(SegmentationTask, "on_train_epoch_start", stop)
        with pytest.raises(SystemExit):
            fit(recipe, tmp_path, progress=False)
    fit(recipe, tmp_path, resume=True, progress=False)
    one, other = (torch.load(path / LAST, weights_only=True)["state_dict"] for path in (run, tmp_path))
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert log(tmp_path)["train/loss"] == log(run)["train/loss"]
    assert log(tmp_path)["val/mean_iou"] == log(run)["val/mean_iou"][validate_every - 1 :]


def test_the_schedule_is_polynomial(tmp_path):
    recipe = Recipe(**{**SMALL, "epochs": 4, "batch_size": 16, "warmup": 1, "optimizer": "sgd", "lr": 0.1})
    fit(recipe, tmp_path, progress=False)
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        rates = [float(row["lr-SGD/pg1"]) for row in csv.DictReader(file) if row["lr-SGD/pg1"]]  # an epoch is a step
    assert rates == pytest.approx([0.1 / 2, *(0.1 * (1 - step / 4) ** 0.9 for step in (1, 2, 3))])


def test_checkpoints_have_what_evaluation_needs(run):
    task = load_task(run)
    assert task.names == Scenes("val").names and not task.training
    found = evaluate(task, Scenes("val"))
    assert found.matrix.sum() == 3 * 96 * 128
    assert json.loads(json.dumps(found.summary()))["mean_iou"] == pytest.approx(max(log(run)["val/mean_iou"]))
    plain, mirrored = (segment(task, Scenes("val").read(0)[0], Inference(flip=flip)) for flip in (False, True))
    assert plain.shape == (6, 96, 128) and not torch.equal(plain, mirrored)
    scores = [score for _, score in found.photos]
    assert found.worst(2) == np.argsort(scores)[:2].tolist()


def test_the_average_of_weights_is_evaluated_and_saved(run, tmp_path):
    fit(Recipe(**{**SMALL, "ema": 0.9}), tmp_path, progress=False)
    key = "model.backbone.conv1.weight"
    average, plain = (torch.load(path / LAST, weights_only=True)["state_dict"][key] for path in (tmp_path, run))
    assert not torch.equal(average, plain)
    assert log(tmp_path)["train/loss"] == log(run)["train/loss"]  # the weights that are trained are not touched
    assert load_task(tmp_path).model.state_dict()[key.removeprefix("model.")].isfinite().all()


def test_fine_tuning_starts_from_the_weights(run, tmp_path):
    start = {**SMALL, "epochs": 1, "lr": 1e-12, "initial": str(run)}
    fit(Recipe(**{**start, "loss": "cross_entropy+lovasz_softmax"}), tmp_path, progress=False)
    key = "backbone.conv1.weight"
    one, other = (load_task(path).model.state_dict()[key] for path in (tmp_path, run))
    assert (one - other).abs().max() <= 1e-10


def test_all_options_in_one_run(tmp_path):
    more = {
        "precision": "bf16-mixed",
        "batch_size": 4,
        "accumulate": 2,
        "clip": 1.0,
        "ema": 0.5,
        "warmup": 1,
        "optimizer": "sgd",
        "loss": "ohem_cross_entropy+0.5*dice_loss",
        "class_weights": "median_frequency",
        "size": (64, 80),
    }
    fit(Recipe(**{**SMALL, **more}), tmp_path, progress=False)
    state = torch.load(tmp_path / LAST, weights_only=True)
    assert state["global_step"] == 2 * (16 // 4 // 2)
    assert np.isfinite(log(tmp_path)["train/loss"]).all()
    task = load_task(tmp_path)
    assert task.criterion.losses["dice_loss"].class_weight.shape == (6,)
    assert segment(task, Scenes("val").read(0)[0], Inference()).shape == (6, 96, 128)  # whose size is not the recipe's


@pytest.mark.parametrize("name", [BEST, "other"])
def test_files_that_are_no_checkpoints(name, tmp_path):
    (tmp_path / BEST).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=f"{name}: expected a checkpoint"):
        load_task(tmp_path / name)


def test_a_bad_mask_ends_training_with_its_name(tmp_path):
    for split in ("train", "val"):
        for kind, pixels in (("images", np.zeros((32, 32, 3), np.uint8)), ("masks", np.zeros((32, 32), np.uint8))):
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(pixels).save(tmp_path / split / kind / f"{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(tmp_path / "train" / "masks" / "1.png")
    with pytest.raises(DataError, match="train/masks/1.png: expected labels from 0 to 1"):
        fit(Recipe(**{**SMALL, "data": str(tmp_path), "crop": (32, 32)}), tmp_path / "run", progress=False)


TWO = """
import sys
from pathlib import Path
from torch import nn
from segops.data.datasets import Scenes
from segops.training import Recipe
from segops.training import fit as module
Scenes.COUNTS = {"train": 16, "val": 3, "test": 3}
made = module.make_task

def without_dropout(recipe, data):  # each process draws its own
    task = made(recipe, data)
    for part in task.modules():
        if isinstance(part, (nn.Dropout, nn.Dropout2d)):
            part.p = 0.0
    return task

module.make_task = without_dropout
processes, model, output = sys.argv[1:]
options = {"encoder": "resnet10t", "output_stride": 32, "multi_grid": (1,), "channels": 64, "num_bases": 8}
recipe = Recipe(
    model=model, model_options=options, epochs=2, crop=(32, 64), scale=(1, 1),
    workers=0, precision="64-true", accelerator="cpu", devices=processes, strategy="ddp" if processes == "2" else "auto",
)
module.fit(recipe, Path(output), progress=False)
"""


@pytest.mark.parametrize("model", ["emanet"])
def test_two_processes_end_as_one_does(model, tmp_path):
    (tmp_path / "two.py").write_text(textwrap.dedent(TWO))
    for processes in ("1", "2"):
        command = [sys.executable, tmp_path / "two.py", processes, model, tmp_path / processes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = log(tmp_path / "1"), log(tmp_path / "2")
    for key in ("train/loss", "val/mean_iou"):
        assert two[key] == pytest.approx(one[key], rel=1e-6)  # which the log has in float32
    one, two = (torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"] for name in ("1", "2"))
    for key in one:
        error = (one[key].double() - two[key].double()).norm()
        assert error <= 1e-8 * one[key].double().norm(), key
