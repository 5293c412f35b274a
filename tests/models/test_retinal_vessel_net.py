"""The retinal vessel net: its pyramid and its whole against plain layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segops.models import RetinalVesselNet


def made(num_classes: int = 2) -> RetinalVesselNet:
    torch.manual_seed(0)
    model = RetinalVesselNet(num_classes, channels=(4, 5, 6, 7)).eval().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model


def norm(layer: nn.BatchNorm2d, x: torch.Tensor, part: slice = slice(None)) -> torch.Tensor:
    mean, var, scale, shift = (
        t[part][:, None, None] for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def test_pyramid_is_four_convolutions():
    pyramid = made().backbone.pyramid
    x = torch.randn(2, 7, 19, 30).double()
    branches = []
    for i, rate in enumerate((6, 12, 18, 24)):
        conv = pyramid.branches[i]
        out = F.conv2d(x, conv.weight, conv.bias, padding=rate, dilation=rate).relu()
        branches.append(norm(pyramid.norm, out, slice(7 * i, 7 * i + 7)))
    expected = torch.cat(branches, 1)
    assert (pyramid(x) - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (584, 565), (5, 1)])
def test_logits_of_plain_layers(size):
    model, image = made(), np.random.default_rng(0).normal(size=(1, 3, *size))
    sides = [(0, -(-side // 16) * 16 - side) for side in size]
    x = torch.from_numpy(np.pad(image, [(0, 0), (0, 0), *sides], mode="reflect"))

    def convs(block, x):
        for conv, bn, _ in block:
            x = norm(bn, F.conv2d(x, conv.weight, padding=1)).relu()
        return x

    with torch.no_grad():
        skips = []
        for stage in model.backbone.stages:
            x = convs(stage.convs, x) + F.conv2d(x, stage.skip.weight, stage.skip.bias)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        assert x.shape[2:] == tuple(-(-side // 16) for side in size)
        x = model.backbone.pyramid(x)
        for up, stage in zip(model.classifier.ups, model.classifier.stages):
            x = torch.cat([F.conv_transpose2d(x, up.weight, up.bias, stride=2), skips.pop()], 1)
            x = convs(stage, x)
        score = model.classifier.score
        expected = F.conv2d(x, score.weight, score.bias)[..., : size[0], : size[1]]
        out = model(torch.from_numpy(image))
    assert out.shape == expected.shape and (out - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("classes", [1, 2])
def test_loss_is_dice(classes):
    model, image = made(classes).train(), torch.randn(2, 3, 33, 40).double()
    target = torch.randint(0, 2, (2, 33, 40))
    maps = model(image)
    p = maps["out"].softmax(1) if classes == 2 else maps["out"].sigmoid()
    t = torch.stack([1 - target, target], 1) if classes == 2 else target[:, None]
    dice = (2 * (p * t).sum((0, 2, 3)) + 1e-5) / ((p + t).sum((0, 2, 3)) + 1e-5)
    assert torch.isclose(model.loss(maps, target), (1 - dice).mean(), rtol=1e-10)
    other = model.loss(maps, target, lambda logits, target: logits.sum())
    assert torch.equal(other, maps["out"].sum())


@pytest.mark.parametrize(("options", "named"), [({"num_classes": 0}, "num_classes"), ({"channels": ()}, "channels")])
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        RetinalVesselNet(**options)
