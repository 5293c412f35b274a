"""PointRend against its steps written out: where points lie, what they see, what is lost, how a map is refined."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import PointRend

SMALL = {
    "num_classes": 5,
    "encoder": "resnet18",
    "pyramid_channels": 32,
    "channels": 32,
    "point_channels": 16,
    "train_points": 64,
    "eval_points": 100,
}


def randomised(**options) -> PointRend:
    torch.manual_seed(0)
    model = PointRend(**{**SMALL, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def sampled(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(x, 2 * at[:, :, None] - 1, mode="bilinear", align_corners=False)[..., 0]


def margin(logits: torch.Tensor) -> torch.Tensor:
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return first - second


def of_points(model: PointRend, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    state = model.point_head.state_dict()
    again = model.point_head.coarse_each_layer
    x = torch.cat([fine, coarse], 1)
    for i in range(3):
        weight, bias = state[f"layers.{i}.weight"][..., 0], state[f"layers.{i}.bias"]
        x = F.relu(torch.einsum("oc,ncp->nop", weight, x) + bias[:, None])
        x = torch.cat([x, coarse], 1) if again else x
    return torch.einsum("oc,ncp->nop", state["predictor.weight"][..., 0], x) + state["predictor.bias"][:, None]


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("again", [False, True])
def test_evaluation_asks_again_at_the_most_uncertain_cells_of_each_doubling(image, again):
    model = randomised(coarse_each_layer=again).eval()
    with torch.no_grad():
        levels = model.backbone(image)
        coarse = out = model.classifier(levels)
        assert coarse.shape[2:] == (16, 24) and levels[0].shape[2:] == (16, 24)
        for _ in range(2):
            out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False)
            height, width = out.shape[2:]
            cells = margin(out).flatten(1).topk(100, largest=False).indices
            column, row = (cells % width).double(), (cells // width).double()
            at = torch.stack([(column + 0.5) / width, (row + 0.5) / height], -1)
            refined = of_points(model, sampled(levels[0], at), sampled(coarse, at))
            out = out.flatten(2).scatter(2, cells[:, None].expand(-1, 5, -1), refined).unflatten(2, (height, width))
        assert (model(image) - out).norm() <= 1e-10 * out.norm()


def test_points_of_training_are_three_quarters_uncertain_and_a_seed_repeats_them(image):
    model = randomised().train()
    with torch.no_grad():
        torch.manual_seed(5)
        maps = model.logits(image)
        torch.manual_seed(5)
        candidates, others = (torch.rand(2, count, 2, dtype=torch.float64) for count in (192, 16))
        least = margin(sampled(maps["out"], candidates)).topk(48, largest=False).indices
        expected = torch.cat([candidates.gather(1, least[..., None].expand(-1, -1, 2)), others], 1)
        assert (maps["coordinates"] - expected).abs().max() <= 1e-12
        finest = model.backbone(image)[0]
        answers = of_points(model, sampled(finest, expected), sampled(maps["out"], expected))
        assert (maps["points"] - answers).norm() <= 1e-10 * answers.norm()


def test_loss_of_points_is_of_the_pixels_that_they_lie_in(image):
    model = randomised().train()
    target = torch.randint(5, (2, 65, 97))
    target[:, :20] = 255
    maps = model(image)
    column, row = (maps["coordinates"] * torch.tensor([97, 65])).long().unbind(-1)
    labels = target[torch.arange(2)[:, None], row, column]
    assert (labels == 255).any()
    maps["out"] = F.interpolate(maps["out"], (65, 97), mode="bilinear")
    expected = sum(
        F.cross_entropy(x, y, ignore_index=255) for x, y in ((maps["out"], target), (maps["points"], labels))
    )
    assert (model.loss(maps, target) - expected).abs() <= 1e-10
    finest = model.backbone.output[0].weight
    assert torch.autograd.grad(maps["points"].sum(), finest)[0].abs().sum() > 0


def test_a_point_on_the_border_has_the_label_of_the_last_pixel():
    model = randomised()
    maps = {"points": torch.randn(1, 5, 1), "coordinates": torch.ones(1, 1, 2)}
    target = torch.zeros(1, 64, 96, dtype=torch.long)
    target[0, -1, -1] = 3
    expected = F.cross_entropy(maps["points"], torch.tensor([[3]]))
    assert (model.term("points", maps, target, F.cross_entropy) - expected).abs() <= 1e-6


def test_predictor_starts_small():
    predictor = PointRend(**SMALL).point_head.predictor
    assert 0.0005 < predictor.weight.std() < 0.002 and not predictor.bias.any()


@pytest.mark.parametrize("named", ["train_points", "steps", "eval_points", "num_classes"])
def test_bad_options(named):
    with pytest.raises(ValueError, match=named):
        PointRend(**{**SMALL, named: -1})
