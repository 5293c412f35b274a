"""Trunks of timm."""

from __future__ import annotations

import pytest
import timm
import torch

from segops.models.parts.encoder import encoder


# The second one strides by averages in its shortcuts, the third by blurs in its blocks, the last by averages in both,
# some of which leave out the last pixel of an odd row.
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", (66, 97)), ("resnet10t", (66, 97)), ("resnetblur18", (66, 97)), ("resnetaa34d", (64, 96))],
)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_strides(name, size, output_stride):
    trunk = encoder(name, output_stride=output_stride).eval()
    with torch.no_grad():
        features = trunk(torch.randn(1, 3, *size))
    for x, reduction, channels in zip(features, trunk.reductions, trunk.channels, strict=True):
        stride = min(reduction, output_stride)
        assert x.shape == (1, channels, *(-(-side // stride) for side in size))


@pytest.mark.parametrize("name", ["resnet10t", "resnetblur18", "resnetaa34d", "mobilenetv3_small_100"])
def test_without_holes_it_is_what_timm_builds(name):
    trunk, plain = encoder(name).eval(), timm.create_model(name, features_only=True).eval()
    plain.load_state_dict(trunk.state_dict())
    image = torch.randn(1, 3, 64, 95)
    with torch.no_grad():
        for x, expected in zip(trunk(image), plain(image), strict=True):
            torch.testing.assert_close(x, expected)
