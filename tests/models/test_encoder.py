"""Trunks of timm."""

from __future__ import annotations

import pytest
import timm
import torch

from segops.models.parts.encoder import encoder


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])  # the second one strides by averages in its shortcuts
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides(name, output_stride):
    trunk = encoder(name, output_stride=output_stride).eval()
    with torch.no_grad():
        features = trunk(torch.randn(1, 3, 66, 97))
    for x, reduction, channels in zip(features, trunk.reductions, trunk.channels, strict=True):
        stride = min(reduction, output_stride)
        assert x.shape == (1, channels, -(-66 // stride), -(-97 // stride))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_100"])
def test_without_holes_it_is_what_timm_builds(name):
    trunk, plain = encoder(name).eval(), timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(trunk.state_dict())
    image = torch.randn(1, 3, 64, 95)
    with torch.no_grad():
        for x, expected in zip(trunk(image), plain(image), strict=True):
            torch.testing.assert_close(x, expected)
