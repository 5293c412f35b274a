"""segops.nn.PSA: the published wiring in plain PyTorch, its number of parameters, sizes, bad input."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import segops
from segops.reference import psa as reference


def attended(x: torch.Tensor, entries: torch.Tensor, mode: str, layer: segops.nn.PSA) -> torch.Tensor:
    m = reference.weights(entries, mode, *layer.mask_size, layer.compact)
    m = m.softmax(1) if layer.softmax else m
    return (x.flatten(2) @ m).view_as(x) / layer.normalization_factor


def published(layer: segops.nn.PSA, x: torch.Tensor) -> torch.Tensor:
    """The module as the paper draws it, one step after the other."""
    modes = ("collect", "distribute") if layer.direction == "both" else (layer.direction,)
    branches = []
    for mode, reduce, attention in zip(modes, ("reduce", "reduce_p"), ("attention", "attention_p"), strict=False):
        y = getattr(layer, reduce)(x)
        size = [(s - 1) // layer.shrink_factor + 1 for s in y.shape[2:]]
        y = functional.interpolate(y, size=size, mode="bilinear", align_corners=True)
        branches.append(attended(y, getattr(layer, attention)(y), mode, layer))
    out = layer.proj(torch.cat(branches, 1))
    return torch.cat([x, functional.interpolate(out, size=x.shape[2:], mode="bilinear", align_corners=True)], 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"direction": "collect", "shrink_factor": 1, "mask_size": (5, 7)},
        {"direction": "distribute", "softmax": False, "normalization_factor": None},
        {"compact": True, "mask_size": (5, 4)},
        {"compact": True, "mask_size": (5, 4), "direction": "distribute"},
    ],
    ids=str,
)
def test_published_wiring(options):
    layer = segops.nn.PSA(6, 4, **{"mask_size": (9, 7), **options}).double()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), published(layer, x)
    torch.testing.assert_close(out, expected)
    leaves, direction = [x, *layer.parameters()], torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_number_of_parameters_is_that_of_psanet():
    """50,875,478 of PSANet with ResNet-50, 150 classes: without the trunk (23,631,808) and the classifier."""
    classifier = 4096 * 512 * 9 + 2 * 512 + 512 * 150 + 150
    parameters = sum(p.numel() for p in segops.nn.PSA(2048).parameters())
    assert parameters == 50_875_478 - 23_631_808 - classifier


def test_names_are_those_of_semseg():
    both = {key.split(".")[0] for key in segops.nn.PSA(4, 4, mask_size=3).state_dict()}
    assert both == {"reduce", "attention", "reduce_p", "attention_p", "proj"}
    keys = segops.nn.PSA(4, 4, mask_size=3, direction="collect").state_dict()
    assert {key.split(".")[0] for key in keys} == {"reduce", "attention", "proj"}
    assert keys["attention.3.weight"].shape == (9, 4, 1, 1) and "attention.3.bias" not in keys


@pytest.mark.parametrize("size", [(1, 1), (8, 13), (20, 6)])
def test_any_size_of_map(size):
    layer, x = segops.nn.PSA(4, 3, mask_size=9).eval(), torch.randn(1, 4, *size)
    out = layer(x)
    assert out.shape == (1, 8, *size) and torch.equal(out[:, :4], x)
    torch.testing.assert_close(out, published(layer, x))


def test_normalization_factor():
    layer = segops.nn.PSA(4, 3, mask_size=(5, 3), normalization_factor=None)
    assert layer.normalization_factor == 15 and "normalization_factor=15" in repr(layer)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels: expected at least 1, got 0"),
        ({"mid_channels": 0}, ValueError, "mid_channels: expected at least 1, got 0"),
        ({"direction": "bi"}, ValueError, "direction: expected one of 'collect', 'distribute', 'both', got 'bi'"),
        ({"mask_size": 4}, ValueError, "mask_size: expected odd numbers, got 4"),
        ({"mask_size": None}, TypeError, "mask_size: expected one integer or two, got NoneType"),
        ({"mask_size": 0, "compact": True}, ValueError, "mask_size: expected at least 1, got 0"),
        ({"shrink_factor": 0}, ValueError, "shrink_factor: expected at least 1, got 0"),
        ({"normalization_factor": 0}, ValueError, "normalization_factor: expected a finite number > 0, got 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        segops.nn.PSA(**{"in_channels": 4, "mid_channels": 3, "mask_size": 3, **options})


def test_bad_inputs():
    with pytest.raises(ValueError, match=r"x: expected 4 channels, got shape \(1, 5, 6, 6\)"):
        segops.nn.PSA(4, 3, mask_size=3)(torch.rand(1, 5, 6, 6))
    with pytest.raises(ValueError, match=r"x: expected a map of \(3, 3\) after shrinking, got \(3, 4\)"):
        segops.nn.PSA(4, 3, mask_size=3, compact=True)(torch.rand(1, 4, 6, 7))
