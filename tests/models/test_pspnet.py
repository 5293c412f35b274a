"""PSPNet: its trunk, and its head against the paper's description in plain torch."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, layer, randomise
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from segops.models import PSPNet
from segops.models.parts.pyramid_pooling import PyramidPooling


def test_trunk():
    with FakeTensorMode():
        model = PSPNet().eval()
        trunk = model.backbone
        assert [conv.out_channels for conv in (trunk.conv1[0], trunk.conv1[3], trunk.conv1[6])] == [64, 64, 128]
        assert [conv.stride for conv in (trunk.conv1[0], trunk.conv1[3], trunk.conv1[6])] == [(2, 2), (1, 1), (1, 1)]
        assert [tuple(f.shape[1:]) for f in trunk(torch.empty(1, 3, 473, 473))[-2:]] == [(1024, 60, 60), (2048, 60, 60)]
        assert model(torch.empty(1, 3, 473, 473)).shape == (1, 150, 473, 473)
    assert not trunk.maxpool.ceil_mode
    for stage, rate in ((trunk.layer3, 2), (trunk.layer4, 4)):
        assert {block.conv2.dilation for block in stage} == {block.conv2.padding for block in stage} == {(rate, rate)}
        assert {conv.stride for block in stage for conv in (block.conv1, block.conv2)} == {(1, 1)}
    assert (trunk.layer2[0].conv1.stride, trunk.layer2[0].conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize("size", [(12, 18), (7, 10), (4, 5)])  # sizes that the grids divide, do not, and exceed
def test_head(size):
    torch.manual_seed(0)
    head = randomise(PSPNet(5, "resnet18", channels=32).classifier.double().eval())
    x = torch.randn(2, 512, *size, dtype=torch.float64)
    pooling, conv, norm, *_, classifier = head
    maps = [x]
    for bins, (reduce, normalise, _) in zip((1, 2, 3, 6), pooling.layers, strict=True):
        grid = layer(F.adaptive_avg_pool2d(x, bins), reduce, normalise)
        maps.append(F.interpolate(grid, size, mode="bilinear", align_corners=True))
    expected = convolved(layer(torch.cat(maps, 1), conv, norm), classifier)
    assert error(head([x]), expected) <= 1e-10


def test_pyramid_pooling_of_a_map():
    pooling = randomise(PyramidPooling(8, 3, (1, 2)).eval())
    out = pooling(x := torch.randn(1, 8, 6, 6))
    assert torch.equal(out[:, :8], x)
    assert (out[:, 8:11] == out[:, 8:11, :1, :1]).all()  # one bin: the same everywhere
    assert out.shape[1] == pooling.out_channels == 14


@pytest.mark.parametrize("aux", [True, False])
def test_interpolation_aligns_corners(aux):
    torch.manual_seed(0)
    model = PSPNet(5, "resnet18", channels=32, aux=aux).eval()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        out, maps = model(image), model.logits(image)
    assert list(maps) == ["out"] and maps["out"].shape[2:] == (9, 13)
    assert error(out[:, :, ::8, ::8], maps["out"]) <= 1e-5  # of 8 k + 1 pixels, every eighth is a position of the map


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_stride": 4}, "output_stride"),
        ({"channels": 0}, "channels"),
        ({"encoder": "mobilenetv2_100"}, "encoder"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        PSPNet(**{"encoder": "resnet18", **options})
