"""A model with a convolutional CRF: colours, maps, loss, parameters, and the CRF by its equations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import create_model

SMALL = {"num_classes": 5, "encoder": "resnet18", "filter_size": 3, "blur": 1, "iterations": 3}


def made(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model("conv_crf", **{**SMALL, **options}).double()
    crf = model.classifier
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def photograph(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth enough for neighbours to be alike, in 0 to 255, and as models want it."""
    coarse = 255 * torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    colours = F.interpolate(coarse, size, mode="bicubic").clamp(0, 255)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double().view(2, 3, 1, 1)
    return colours, (colours / 255 - mean) / std


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """(1, C, H, W) to (C, 9, H, W), 0 beyond the border."""
    return F.unfold(x, 3, padding=1).view(x.shape[1], 9, *x.shape[2:])


def written_out(crf: torch.nn.Module, logits: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    state = crf.state_dict()
    at = torch.tensor([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=logits.dtype)
    spatial = (-0.5 * (at / state["log_spatial_sigma"].exp()).square().sum(1)).exp()
    difference = (neighbours(colours) - colours[0][:, None]) / state["log_bilateral_sigma_rgb"].exp().view(3, 1, 1, 1)
    bilateral = (-0.5 * difference.square().sum(0)).exp()
    kernel = state["spatial_weight"] * spatial.view(9, 1, 1) + state["bilateral_weight"] * bilateral
    unary = logits.log_softmax(1)
    q = unary.exp()
    for _ in range(3):
        message = (kernel * neighbours(q)).sum(1)
        energy = torch.einsum("kl,lhw->khw", state["compatibility"], message)
        scores = state["unary_weight"].view(-1, 1, 1) * unary - energy
        q = scores.softmax(1)
    return scores


def test_refined_logits_by_the_equations():
    model = made().eval()
    colours, image = photograph((33, 41))
    with torch.no_grad():
        inner = model.backbone(image)
        expected = written_out(model.classifier, inner, colours)
        out = model(image)
        assert (model.colours(image) - colours).norm() <= 1e-10 * colours.norm()
        assert (out - expected).norm() <= 1e-10 * expected.norm()
        assert (out - inner).norm() > 0.1 * inner.norm()


def test_other_normalisation():
    model = made(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    image = torch.tensor([-2.0, 0.0, 0.5]).view(1, 3, 1, 1).double()
    assert model.colours(image).flatten().tolist() == [0.0, 127.5, 255.0]


@pytest.mark.parametrize("inner", ["fcn", "encnet"])
def test_training_gives_all_maps_and_the_loss_has_the_refined_ones_in_place_of_the_others(inner):
    options = {"channels": 16} if inner == "encnet" else {}
    model = made(model=inner, **options).train()
    image, target = torch.randn(2, 3, 65, 97).double(), torch.randint(5, (2, 65, 97))
    maps = model(image)
    assert set(maps) == {"out", "unary", *model.backbone.loss_weights}
    expected = model.backbone.loss({name: m for name, m in maps.items() if name != "unary"}, target)
    assert (model.loss(maps, target) - expected).abs() <= 1e-12
    aside = model.loss({**maps, "unary": torch.zeros_like(maps["unary"])}, target)
    assert (aside - expected).abs() <= 1e-12
    of_refined = F.cross_entropy(maps["out"], target) - F.cross_entropy(maps["unary"], target)
    inner_loss = model.backbone.loss({**maps, "out": maps["unary"]}, target)
    assert (expected - inner_loss - of_refined).abs() <= 1e-10 and of_refined.abs() > 1e-3


def test_what_is_learnt():
    names = ("learn_weights", "learn_compatibility", "learn_sigmas")
    for learnt in names:
        model = made(**{name: name == learnt for name in names})
        counts = {"learn_weights": 5 + 2, "learn_compatibility": 25, "learn_sigmas": 2 + 3}
        assert sum(p.numel() for p in model.classifier.parameters()) == counts[learnt]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "fcm"}, "fcm"),
        ({"num_classes": 0}, "num_classes"),
        ({"filter_size": 4}, "filter_size"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        create_model("conv_crf", **{**SMALL, **options})


def test_options_that_the_model_does_not_have():
    with pytest.raises(TypeError, match="colour: fcn has no such option"):
        create_model("conv_crf", model="fcn", colour="red")
