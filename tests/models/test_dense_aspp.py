"""DenseASPP: its trunk, and its head against the paper's description in plain torch."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, layer, normalised, randomise
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from segops.models import DenseASPP
from segops.models.dense_aspp import DenseASPPHead


@pytest.mark.parametrize(("encoder", "channels"), [("densenet121", 512), ("densenet161", 1104)])
@pytest.mark.parametrize(("output_stride", "side", "rates"), [(8, 32, (1, 1, 2, 4)), (16, 16, (1, 1, 1, 2))])
def test_trunk(encoder, channels, output_stride, side, rates):
    with FakeTensorMode():
        model = DenseASPP(19, encoder, output_stride=output_stride).eval()
        features = model.backbone(torch.empty(1, 3, 256, 256))
        assert features[-1].shape == (1, channels, side, side)
        assert model.classifier(features).shape == (1, 19, 32, 32)
        assert [f.shape[1] for f in features] == model.backbone.channels
        assert [256 // f.shape[2] for f in features] == model.backbone.reductions
    for index, rate in enumerate(rates, 1):
        block = getattr(model.backbone, f"features_denseblock{index}")
        assert {dense.conv2.dilation for dense in block.values()} == {(rate, rate)}
        assert {dense.conv2.padding for dense in block.values()} == {(rate, rate)}
    pools = [getattr(model.backbone, f"features_transition{index}").pool for index in (1, 2, 3)]
    pooled = [isinstance(pool, nn.AvgPool2d) for pool in pools]
    assert pooled == [True, output_stride == 16, False]


def test_last_transition():
    """Normalisation, ReLU and halving of channels, then normalisation and ReLU again."""
    torch.manual_seed(0)
    trunk = randomise(DenseASPP(5, "densenet121", blocks=(1, 2, 2, 1)).backbone.double().eval())
    (norm, conv), last_norm = trunk.features_norm5
    x = torch.randn(2, conv.in_channels, 4, 5, dtype=torch.float64)
    expected = normalised(convolved(normalised(x, norm).relu(), conv), last_norm).relu()
    assert error(trunk.features_norm5(x), expected) <= 1e-10


def test_head():
    torch.manual_seed(0)
    head = randomise(DenseASPPHead(12, 5, 8, 4).double().eval())
    features = x = torch.randn(2, 12, 16, 20, dtype=torch.float64).relu()
    for block, rate in zip(head.layers, (3, 6, 12, 18, 24), strict=True):
        norms = [m for m in block if isinstance(m, nn.BatchNorm2d)]
        convs = [m for m in block if isinstance(m, nn.Conv2d)]
        y = x if rate == 3 else normalised(x, norms[0]).relu()
        y = convolved(layer(y, convs[0], norms[-1]), convs[1], rate)
        x = torch.cat([y, x], 1)
    assert torch.equal(x[:, -12:], features)
    assert error(head([features] * 5), convolved(x, head.classifier)) <= 1e-10
    assert len(head.layers[0]) == 5 and {m.momentum for m in head.modules() if isinstance(m, nn.BatchNorm2d)} == {3e-4}


def test_features_of_stride_16_are_resized():
    torch.manual_seed(0)
    head = randomise(DenseASPPHead(12, 5, 8, 4).double().eval())
    fine, coarse = (torch.randn(1, 12, n, n, dtype=torch.float64) for n in (9, 5))
    x = F.interpolate(coarse, (9, 9), mode="bilinear", align_corners=True)
    assert error(head([fine, fine, fine, coarse]), head([fine, fine, fine, x])) <= 1e-10


@pytest.mark.parametrize(
    ("options", "named"),
    [({"output_stride": 32}, "output_stride"), ({"encoder": "resnet50"}, "encoder"), ({"blocks": (1, 1)}, "blocks")],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        DenseASPP(**{"encoder": "densenet121", **options})
