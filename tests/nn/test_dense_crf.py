"""segops.nn.DenseCRF: parameters, learning, bad input."""

from __future__ import annotations

import pytest
import torch

import segops
from segops.nn import DenseCRF


def scene(height=10, width=12, labels=3, batch=2):
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return torch.randn(batch, labels, height, width), image


@pytest.mark.parametrize("algorithm", ["lattice", "exact"])
@pytest.mark.parametrize("learn_sigmas", [False, True])
def test_equals_the_function_at_first(algorithm, learn_sigmas):
    if learn_sigmas and algorithm == "lattice":
        with pytest.raises(ValueError, match="learn_sigmas: expected algorithm='exact'"):
            DenseCRF(3, algorithm=algorithm, learn_sigmas=True)
        return
    logits, image = scene()
    options = {
        "spatial_sigma": (2.0, 3.0),
        "bilateral_sigma_xy": 20.0,
        "bilateral_sigma_rgb": (10.0, 11.0, 12.0),
        "iterations": 2,
    }
    crf = DenseCRF(3, algorithm=algorithm, learn_sigmas=learn_sigmas, return_logits=False, **options)
    torch.testing.assert_close(
        crf(logits, image), segops.dense_crf(logits, image, algorithm=algorithm, **options), rtol=1e-4, atol=1e-5
    )


def test_parameters_are_those_asked_for():
    assert {n for n, _ in DenseCRF(4).named_parameters()} == {"spatial_weight", "bilateral_weight", "compatibility"}
    fixed = DenseCRF(4, learn_weights=False, learn_compatibility=False)
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"spatial_weight", "bilateral_weight", "compatibility"}
    exact = DenseCRF(4, algorithm="exact", learn_sigmas=True)
    assert {"log_spatial_sigma", "log_bilateral_sigma_xy", "log_bilateral_sigma_rgb"} < {
        n for n, _ in exact.named_parameters()
    }
    DenseCRF(4).load_state_dict(fixed.state_dict())


@pytest.mark.parametrize("exact", [False, True])
def test_learns(exact):
    """Every parameter gets a gradient, and on two halves of different colour a few steps learn to smooth."""
    target = torch.zeros(1, 10, 12, dtype=torch.long)
    target[..., 6:] = 1
    image = torch.tensor([40, 200], dtype=torch.uint8)[target][:, None].expand(1, 3, 10, 12)
    logits = 0.5 * torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2) + 0.7 * torch.randn(1, 3, 10, 12)
    crf = DenseCRF(
        3,
        iterations=2,
        spatial_weight=0.1,
        bilateral_weight=0.1,
        bilateral_sigma_rgb=100.0,
        algorithm="exact" if exact else "lattice",
        learn_sigmas=exact,
    )
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
    crf = DenseCRF(3, iterations=1).double()
    assert crf(logits.double(), image).dtype == torch.float64
    assert DenseCRF(3, iterations=1).bfloat16()(logits.bfloat16(), image).dtype == torch.bfloat16
    assert "DenseCRF(3, iterations=1" in repr(crf)


def test_compiles_whole():
    logits, image = scene()
    crf = DenseCRF(3, iterations=1)
    torch.testing.assert_close(torch.compile(crf, fullgraph=True)(logits, image), crf(logits, image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"num_classes": 3, "iterations": -1}, "iterations: expected an integer >= 0, got -1"),
        ({"num_classes": 3, "spatial_sigma": 0.0}, "spatial_sigma: expected a finite number > 0"),
        ({"num_classes": 3, "normalization": "x"}, "normalization: expected one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**arguments)


def test_bad_inputs():
    logits, image = scene()
    with pytest.raises(ValueError, match="logits: expected 4 labels, got shape"):
        DenseCRF(4)(logits, image)
    crf = DenseCRF(3, algorithm="exact", learn_sigmas=True)
    with pytest.raises(ValueError, match="image: expected 3 channels"):
        crf(logits, image[:, :2])
    with pytest.raises(ValueError, match="image: expected shape"):
        crf(logits, image[..., :5])
