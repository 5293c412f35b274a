"""EncNet's head against its equations, the loss of presence, and the layout of the trunk."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import EncNet

SMALL = {"num_classes": 5, "encoder": "resnet18", "channels": 16, "num_codes": 6}


def randomised(**options) -> EncNet:
    torch.manual_seed(0)
    model = EncNet(**{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def written_out(head: torch.nn.Module, features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    state = head.state_dict()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        by_channel = (x - mean.view(1, -1, *[1] * (x.dim() - 2))) / (
            var.view(1, -1, *[1] * (x.dim() - 2)) + 1e-5
        ).sqrt()
        return by_channel * weight.view(1, -1, *[1] * (x.dim() - 2)) + bias.view(1, -1, *[1] * (x.dim() - 2))

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = state[f"{name}.0.weight"]
        return F.relu(norm(F.conv2d(x, weight, padding=weight.shape[2] // 2), f"{name}.1"))

    x = block(features[-1], "conv")
    if "lateral.0.0.weight" in state:
        sides = [block(features[-3], "lateral.0"), block(features[-2], "lateral.1")]
        sides = [F.interpolate(side, x.shape[2:], mode="bilinear", align_corners=True) for side in sides]
        x = block(torch.cat([x, *sides], 1), "fusion")
    pixels = block(x, "project").flatten(2).mT  # (N, P, D)
    residual = pixels[:, :, None] - state["encoding.codewords"]  # (N, P, K, D)
    share = (state["encoding.scale"] * residual.square().sum(-1)).softmax(-1)
    scene = F.relu(norm((share[..., None] * residual).sum(1), "norm")).mean(1)
    gamma = torch.sigmoid(scene @ state["attention.weight"].T + state["attention.bias"])
    y = F.relu(x * (1 + gamma[:, :, None, None]))
    out = F.conv2d(y, state["classifier.1.weight"], state["classifier.1.bias"])
    return out, scene @ state["presence.weight"].T + state["presence.bias"]


@pytest.mark.parametrize("lateral", [True, False])
def test_head_by_the_equations(lateral):
    model = randomised(lateral=lateral)
    features = [torch.randn(2, c, 9, 13, dtype=torch.float64) for c in model.backbone.channels]
    with torch.no_grad():
        for out, expected in zip(model.classifier(features), written_out(model.classifier, features), strict=True):
            assert (out - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize(("stride", "size"), [(8, (9, 13)), (16, (5, 7))])
def test_whole_model_where_lateral_features_have_another_size(stride, size):
    model = randomised(output_stride=stride)
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        features = model.backbone(image)
        assert [tuple(x.shape[2:]) for x in features[-3:]] == [(9, 13), size, size]
        expected, _ = written_out(model.classifier, features)
        expected = F.interpolate(expected, (65, 97), mode="bilinear", align_corners=True)
        assert (model(image) - expected).norm() <= 1e-10 * expected.norm()


def test_dilations_are_those_of_the_authors():
    with torch.device("meta"):
        trunk = EncNet().backbone
    assert [trunk.layer3[0].conv2.dilation[0], trunk.layer3[1].conv2.dilation[0]] == [1, 2]
    assert [trunk.layer4[0].conv2.dilation[0], trunk.layer4[1].conv2.dilation[0]] == [2, 4]


def test_loss_of_presence_leaves_ignored_labels_out():
    model = randomised().train()
    target = torch.tensor([[[0, 3], [3, 255]], [[255, 255], [-1, 4]]])
    maps = {name: torch.randn(2, 5, 2, 2) for name in ("out", "aux")} | {"se": torch.randn(2, 5)}
    there = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    p = torch.sigmoid(maps["se"])
    of_presence = -(there * p.log() + (1 - there) * (1 - p).log()).mean()
    pixels = target.where(target >= 0, 255)
    out, aux = (F.cross_entropy(maps[name], pixels, ignore_index=255) for name in ("out", "aux"))
    assert (model.loss(maps, pixels) - (out + 0.2 * of_presence + 0.2 * aux)).abs() <= 1e-6
    assert (model.term("se", maps, target, F.cross_entropy) - of_presence).abs() <= 1e-6


def test_permuting_the_pixels_leaves_the_scene_alone():
    head = randomised(lateral=False).classifier
    head.conv = torch.nn.Identity()
    features = torch.randn(1, 16, 4, 6, dtype=torch.float64)
    turned = features.flatten(2)[..., torch.randperm(24)].unflatten(2, (4, 6))
    with torch.no_grad():
        (_, one), (_, other) = head([features]), head([turned])
        assert (one - other).norm() <= 1e-10 * one.norm()


@pytest.mark.parametrize("named", ["num_classes", "channels", "num_codes", "output_stride"])
def test_bad_options(named):
    with pytest.raises(ValueError, match=named):
        EncNet(**{**SMALL, named: 0})
