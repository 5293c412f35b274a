"""Semantic FPN against the equations of the pyramid and of its head."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import SemanticFPN

SMALL = {"num_classes": 5, "encoder": "resnet18", "pyramid_channels": 32, "channels": 64}


def randomised() -> SemanticFPN:
    torch.manual_seed(0)
    model = SemanticFPN(**SMALL).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def twice(x: torch.Tensor, mode: str) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode=mode, **({} if mode == "nearest" else {"align_corners": False}))


def written_out(model: SemanticFPN, image: torch.Tensor) -> torch.Tensor:
    """Logits at stride 4, for an image whose sizes are multiples of 32."""
    state = model.state_dict()

    def conv(x: torch.Tensor, name: str, padding: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        x = conv(x, f"classifier.levels.{name}.0", 1)
        return F.group_norm(
            x, 32, state[f"classifier.levels.{name}.1.weight"], state[f"classifier.levels.{name}.1.bias"]
        ).relu()

    _, c2, c3, c4, c5 = model.backbone.trunk(image)
    m5 = conv(c5, "backbone.lateral.3", 0)
    m4 = conv(c4, "backbone.lateral.2", 0) + twice(m5, "nearest")
    m3 = conv(c3, "backbone.lateral.1", 0) + twice(m4, "nearest")
    m2 = conv(c2, "backbone.lateral.0", 0) + twice(m3, "nearest")
    p2, p3, p4, p5 = (conv(m, f"backbone.output.{i}", 1) for i, m in enumerate((m2, m3, m4, m5)))
    total = block(p2, "0.0")
    total = total + twice(block(p3, "1.0"), "bilinear")
    total = total + twice(block(twice(block(p4, "2.0"), "bilinear"), "2.1"), "bilinear")
    coarse = twice(block(twice(block(p5, "3.0"), "bilinear"), "3.1"), "bilinear")
    total = total + twice(block(coarse, "3.2"), "bilinear")
    return conv(total, "classifier.predictor", 0)


def test_logits_by_the_equations():
    model, image = randomised(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        coarse = written_out(model, image)
        expected = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
        assert coarse.shape == (2, 5, 16, 24)
        assert (model.logits(image)["out"] - coarse).norm() <= 1e-10 * coarse.norm()
        assert (model(image) - expected).norm() <= 1e-10 * expected.norm()


def test_every_level_takes_part_and_the_trunk_has_no_holes():
    model = randomised()
    assert all(m.dilation == (1, 1) for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    levels = [level.detach() for level in model.backbone(torch.randn(1, 3, 65, 97, dtype=torch.float64))]
    assert [tuple(level.shape[2:]) for level in levels] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    with torch.no_grad():
        out = model.classifier(levels)
        for i in range(4):
            without = [torch.zeros_like(level) if i == j else level for j, level in enumerate(levels)]
            assert (model.classifier(without) - out).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "named"),
    [({"channels": 48}, "channels"), ({"num_classes": 0}, "num_classes"), ({"encoder": "x"}, "encoder")],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        SemanticFPN(**{**SMALL, **options})
