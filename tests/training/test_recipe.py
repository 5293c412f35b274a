"""Recipes: YAML, the command line, losses by name, class weights."""

from __future__ import annotations

import math

import pytest
import torch

from segops.cli.train import resolve
from segops.losses import cross_entropy, dice_loss
from segops.training import Recipe
from segops.training.criterion import LOSSES, class_weights, criterion, median_frequency_weights
from segops.training.recipe import from_mapping, load_values


def test_yaml_and_back(tmp_path):
    recipe = Recipe(model="fcn", model_options={"encoder": "resnet18"}, size=(180, 240), scale=(0.7, 1.5))
    recipe.save(tmp_path / "recipe.yaml")
    assert from_mapping(load_values(tmp_path / "recipe.yaml")) == recipe


def test_the_command_line_wins(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: fcn\nepochs: 7\nlr: 0.5\n")
    given = {"epochs": 3, "model_options": ["encoder=resnet18", "output_stride=16", "aux=false"], "size": None}
    recipe = resolve(tmp_path / "recipe.yaml", given)
    assert (recipe.model, recipe.epochs, recipe.lr, recipe.size) == ("fcn", 3, 0.5, None)
    assert recipe.model_options == {"encoder": "resnet18", "output_stride": 16, "aux": False}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"epochs": 5, "validate_every": 2}, "validate_every: expected a divisor of 5"),
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"ema": 1.0}, "ema"),
        ({"cache": "yes"}, "cache: expected true or false"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"class_weights": "inverse"}, "class_weights"),
        ({"size": [4]}, "size"),
        ({"size": 4}, "size: expected 2 numbers"),
        ({"scale": 2}, "scale: expected 2 numbers"),
        ({"scale": None}, "scale: expected 2 numbers"),
        ({"distortion": [0.1]}, "distortion: expected 4 numbers"),
        ({"names": 5}, "names: expected text"),
        ({"loss": ["dice_loss"]}, "loss: expected text"),
        ({"model_options": "encoder"}, "model_options"),
        ({"epoch": 3}, "epoch: a recipe has no such value; near: epochs"),
    ],
)
def test_bad_values(values, named):
    with pytest.raises((TypeError, ValueError), match=named):
        from_mapping(values)


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "\x00"])
def test_bad_files(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="recipe.yaml: expected"):
        load_values(tmp_path / "recipe.yaml")


def test_losses_by_name():
    logits, target = torch.randn(2, 3, 5, 6), torch.randint(0, 3, (2, 5, 6))
    target[0, :2] = 255
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = cross_entropy(logits, target, class_weight=weight) + 0.5 * dice_loss(logits, target, class_weight=weight)
    loss = criterion("cross_entropy + 0.5*dice_loss", weight)
    assert torch.allclose(loss(logits, target), expected)
    for name in LOSSES:
        assert criterion(name, weight)(logits, target).isfinite()


@pytest.mark.parametrize("text", ["", "cross", "cross_entropy+", "2cross_entropy", "cross_entropy+cross_entropy"])
def test_bad_losses(text):
    with pytest.raises(ValueError, match="loss"):
        criterion(text)


def test_median_frequency():
    # Class 0 has 60 of the 100 pixels of its photos, class 1 30 of 100, class 2 10 of 50; class 3 is nowhere.
    frequencies = torch.tensor([[60, 30, 10, 0], [100, 100, 50, 0]])
    assert torch.allclose(median_frequency_weights(frequencies), torch.tensor([0.5, 1.0, 1.5, 1.0]))
    assert median_frequency_weights(torch.zeros(2, 3, dtype=torch.int64)).tolist() == [1, 1, 1]
    assert torch.allclose(class_weights("median_frequency", frequencies), torch.tensor([0.5, 1.0, 1.5, 1.0]))


def test_log_frequency():
    weights = class_weights("log_frequency", torch.tensor([[60, 30, 10, 0], [100, 100, 50, 0]]))
    expected = [1 / math.log(1.1 + share) for share in (0.6, 0.3, 0.1, 0)]
    assert weights.tolist() == pytest.approx(expected)
    assert class_weights("none", torch.ones(2, 3)) is None
