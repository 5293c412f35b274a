"""DeepLab v3+: its trunks, and its head against the paper's description in plain torch."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, layer, randomise
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from segops.models import DeepLabV3Plus


# Encoder, stride, side of the last map for 129, rates, channels of the low-level features.
@pytest.mark.parametrize(
    ("encoder", "output_stride", "side", "rates", "low"),
    [
        ("xception65", 16, 9, [6, 12, 18], 256),
        ("xception65", 8, 17, [12, 24, 36], 256),
        ("resnet101", 16, 9, [6, 12, 18], 256),
        ("mobilenetv2_100", 8, 17, [12, 24, 36], 24),
    ],
)
def test_maps_and_rates(encoder, output_stride, side, rates, low):
    with FakeTensorMode():
        model = DeepLabV3Plus(21, encoder, output_stride=output_stride).eval()
        features = model.backbone(torch.empty(1, 3, 129, 129))
        head = model.classifier
        assert features[-1].shape[2:] == (side, side)
        assert features[head.low_index].shape == (1, low, 33, 33)
        assert head(features).shape == (1, 21, 33, 33)
    for branch, rate in zip(head.aspp.branches[1:], rates, strict=True):
        assert branch[0].dilation == branch[0].padding == (rate, rate) and branch[0].groups == branch[0].in_channels


def test_dilations_of_xception():
    with torch.device("meta"):
        trunk = DeepLabV3Plus().backbone
    rates = {}
    for name, conv in trunk.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.groups > 1:
            assert conv.padding == conv.dilation
            rates.setdefault(name.split(".")[0], set()).add(conv.dilation[0])
    assert [block for block, values in rates.items() if values != {1}] == ["blocks_20"] and rates["blocks_20"] == {2}


def test_multi_grid():
    with torch.device("meta"):
        layer4 = DeepLabV3Plus(21, "resnet101", multi_grid=(1, 2, 4)).backbone.layer4
    assert [block.conv2.dilation[0] for block in layer4] == [2, 4, 8]


def test_parameters_of_the_head():
    with torch.device("meta"):
        head = DeepLabV3Plus(21, "resnet101").classifier
    pooling = 2 * (2048 * 256 + 512) + 3 * (2048 * 9 + 4096 + 2048 * 256 + 512) + 1280 * 256 + 512
    decoder = 256 * 48 + 96 + 304 * 9 + 608 + 304 * 256 + 512 + 256 * 9 + 512 + 256 * 256 + 512 + 256 * 21 + 21
    assert sum(p.numel() for p in head.parameters()) == pooling + decoder


def test_parameters_of_the_largest_trunk_as_published():
    with torch.device("meta"):
        model = DeepLabV3Plus(19, "xception71")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 43.5  # table of HRNet's paper


def separable(x: torch.Tensor, layers: nn.Sequential, rate: int = 1) -> torch.Tensor:
    depthwise, norm, _, pointwise, last_norm, _ = layers
    return layer(layer(x, depthwise, norm, rate), pointwise, last_norm)


def test_head():
    torch.manual_seed(0)
    head = randomise(DeepLabV3Plus(5, "resnet18", channels=16).classifier.double().eval())
    low, high = (torch.randn(2, c, *size, dtype=torch.float64) for c, size in ((64, (29, 37)), (512, (8, 10))))
    aspp = head.aspp
    mean = layer(high.sum((2, 3))[..., None, None] / 80, aspp.pooled[0], aspp.pooled[1])
    branches = [F.interpolate(mean, (8, 10)), layer(high, aspp.branches[0][0], aspp.branches[0][1])]
    branches += [separable(high, branch, rate) for branch, rate in zip(aspp.branches[1:], (6, 12, 18), strict=True)]
    context = layer(torch.cat(branches, 1), aspp.project[0], aspp.project[1])
    context = F.interpolate(context, (29, 37), mode="bilinear", align_corners=True)
    x = torch.cat([context, layer(low, head.low[0], head.low[1])], 1)
    for refine in head.refine:
        x = separable(x, refine)
    assert error(head([low, low, high]), convolved(x, head.classifier)) <= 1e-10


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_stride": 4}, "output_stride"),
        ({"channels": 0}, "channels"),
        ({"multi_grid": (1, 2, 4)}, "multi_grid"),
        ({"encoder": "vit_tiny_patch16_224", "output_stride": 32}, "encoder"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        DeepLabV3Plus(**{"encoder": "resnet18", **options})
