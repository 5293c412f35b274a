"""segops.nn.ConvCRF: parameters, learning, bad input."""

from __future__ import annotations

import pytest
import torch

import segops
from segops.nn import ConvCRF


def scene(height=10, width=12, labels=3, batch=2):
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return torch.randn(batch, labels, height, width), image


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("sigma_xy", [None, (20.0, 30.0)])
def test_equals_the_function_at_first(normalization, sigma_xy):
    logits, image = scene()
    options = {"spatial_sigma": (2.0, 3.0), "bilateral_sigma_xy": sigma_xy, "bilateral_sigma_rgb": (10.0, 11.0, 12.0)}
    options |= {"filter_size": 5, "blur": 2, "iterations": 2, "normalization": normalization}
    crf = ConvCRF(3, return_logits=False, **options)
    torch.testing.assert_close(crf(logits, image), segops.conv_crf(logits, image, **options), rtol=1e-4, atol=1e-5)


def test_parameters_are_those_asked_for():
    weights = {"unary_weight", "spatial_weight", "bilateral_weight"}
    sigmas = {"log_spatial_sigma", "log_bilateral_sigma_rgb"}
    assert {n for n, _ in ConvCRF(4).named_parameters()} == {*weights, *sigmas, "compatibility"}
    assert {n for n, _ in ConvCRF(4, bilateral_sigma_xy=9.0, learn_weights=False).named_parameters()} == {
        "compatibility",
        "log_bilateral_sigma_xy",
        *sigmas,
    }
    fixed = ConvCRF(4, learn_weights=False, learn_compatibility=False, learn_sigmas=False)
    assert not list(fixed.parameters())
    ConvCRF(4).load_state_dict(fixed.state_dict())


def test_learns():
    """Every parameter gets a gradient, and on two halves of different colour a few steps learn to smooth."""
    target = torch.zeros(1, 10, 12, dtype=torch.long)
    target[..., 6:] = 1
    image = torch.tensor([40, 200], dtype=torch.uint8)[target][:, None].expand(1, 3, 10, 12)
    image = image + torch.randint(0, 20, image.shape, dtype=torch.uint8)
    logits = 0.5 * torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2) + 0.7 * torch.randn(1, 3, 10, 12)
    crf = ConvCRF(3, filter_size=5, blur=1, iterations=2, spatial_weight=0.1, bilateral_weight=0.1,
                  bilateral_sigma_xy=3.0)  # fmt: skip
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(crf(logits, image), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in crf.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_moves_and_converts():
    logits, image = scene()
    assert ConvCRF(3, iterations=1).double()(logits.double(), image).dtype == torch.float64
    assert ConvCRF(3, iterations=1).bfloat16()(logits.bfloat16(), image).dtype == torch.bfloat16
    assert "ConvCRF(3, filter_size=11, blur=4" in repr(torch.nn.Sequential(ConvCRF(3)))


def test_compiles_whole():
    logits, image = scene()
    crf = ConvCRF(3, filter_size=3, blur=2, iterations=1)
    torch.testing.assert_close(torch.compile(crf, fullgraph=True)(logits, image), crf(logits, image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"num_classes": 3, "filter_size": 4}, "filter_size: expected an odd integer >= 1, got 4"),
        ({"num_classes": 3, "blur": 0}, "blur: expected an integer >= 1, got 0"),
        ({"num_classes": 3, "iterations": -1}, "iterations: expected an integer >= 0, got -1"),
        ({"num_classes": 3, "spatial_sigma": 0.0}, "spatial_sigma: expected a finite number > 0"),
        ({"num_classes": 3, "unary_weight": float("inf")}, "unary_weight: expected a finite number"),
        ({"num_classes": 3, "normalization": "x"}, "normalization: expected one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvCRF(**arguments)


def test_bad_inputs():
    logits, image = scene()
    with pytest.raises(ValueError, match="logits: expected 4 labels, got shape"):
        ConvCRF(4)(logits, image)
    with pytest.raises(ValueError, match="bilateral_sigma_rgb: expected one element or 2, got shape"):
        ConvCRF(3)(logits, image[:, :2])
    with pytest.raises(ValueError, match="image: expected shape"):
        ConvCRF(3)(logits, image[..., :5])
