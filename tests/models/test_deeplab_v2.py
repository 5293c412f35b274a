"""DeepLab v2: its trunk, its sum of convolutions as one convolution, its scales and its loss."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, randomise
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from segops.losses import cross_entropy
from segops.models import DeepLabV2
from segops.models.deeplab_v2 import SummedASPP


@pytest.mark.parametrize(("size", "sides"), [(321, (41, 31, 21)), (320, (41, 31, 21)), (513, (65, 49, 33))])
def test_maps(size, sides):  # of 320 pixels the pooling rounds up
    with FakeTensorMode():
        maps = DeepLabV2().train()(torch.empty(2, 3, size, size))
    shapes = {name: tuple(m.shape) for name, m in maps.items()}
    one, two, three = ((2, 21, side, side) for side in sides)
    expected = {"fused": one, "scale_1": one, "scale_0.75": two, "scale_0.5": three, "out": (2, 21, size, size)}
    assert shapes == expected


def test_trunk():
    with torch.device("meta"):
        trunk = DeepLabV2().backbone
    assert trunk.maxpool.ceil_mode and trunk.maxpool.kernel_size == 3
    for stage, rate, stride in ((trunk.layer2, 1, 2), (trunk.layer3, 2, 1), (trunk.layer4, 4, 1)):
        assert {block.conv2.dilation for block in stage} == {(rate, rate)}
        assert stage[0].conv1.stride == stage[0].downsample[0].stride == (stride, stride)
        assert {block.conv2.stride for block in stage} == {(1, 1)}


def test_sum_is_one_convolution_with_a_sparse_kernel():
    torch.manual_seed(0)
    head = SummedASPP(6, 4, (6, 12, 18, 24)).double()
    kernel = torch.zeros(4, 6, 49, 49, dtype=torch.float64)
    for branch, rate in zip(head.branches, (6, 12, 18, 24), strict=True):
        kernel[:, :, 24 - rate : 25 + rate : rate, 24 - rate : 25 + rate : rate] += branch.weight.detach()
    x = torch.randn(2, 6, 41, 33, dtype=torch.float64)
    expected = F.conv2d(x, kernel, sum(branch.bias for branch in head.branches), padding=24)
    assert error(head([x]), expected) <= 1e-10


def test_vgg16():
    with FakeTensorMode():
        model = DeepLabV2(encoder="vgg16").train()
        maps = model(torch.empty(2, 3, 321, 321))
    assert {name: m.shape[-1] for name, m in maps.items()} == {"out": 321, "fused": 41, "scale_1": 41}
    rates = [{m.dilation[0] for m in stage if isinstance(m, nn.Conv2d)} for stage in model.backbone.stages]
    assert rates == [{1}, {1}, {1}, {1}, {2}] and len(model.backbone.pools) == 5
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in model.backbone.pools][2:4] == [
        (3, 2, 1),
        (3, 1, 1),
    ]


def test_head_of_vgg16():
    torch.manual_seed(0)
    head = randomise(SummedASPP(6, 4, (6, 12, 18, 24), 5).double().eval())
    x = torch.randn(2, 6, 31, 29, dtype=torch.float64)
    expected = torch.zeros(2, 4, 31, 29, dtype=torch.float64)
    for fc6, rest, rate in zip(head.branches, head.rest, (6, 12, 18, 24), strict=True):
        fc7, fc8 = (m for m in rest if isinstance(m, nn.Conv2d))
        expected = expected + convolved(convolved(convolved(x, fc6, rate).relu(), fc7).relu(), fc8)
    assert error(head([x]), expected) <= 1e-10


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomise(DeepLabV2(5, "resnet18"))


def by_hand(model: DeepLabV2, image: torch.Tensor) -> list[torch.Tensor]:
    """Logits of the three scales."""
    how = {"mode": "bilinear", "align_corners": True}
    images = [image, F.interpolate(image, (49, 73), **how), F.interpolate(image, (33, 49), **how)]
    return [model.classifier(model.backbone(scaled)) for scaled in images]


def test_maximum_over_scales(model):
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        scales = by_hand(model.eval(), image)
        resized = [F.interpolate(s, (9, 13), mode="bilinear", align_corners=True) for s in scales]
        fused = torch.stack(resized).max(0).values
        assert error(model.logits(image)["out"], fused) <= 1e-5
        assert error(model(image), F.interpolate(fused, (65, 97), mode="bilinear", align_corners=True)) <= 1e-5
        model.multi_scale = False
        assert error(model.logits(image)["out"], scales[0]) <= 1e-5


def test_loss(model):
    torch.manual_seed(1)
    image, target = torch.randn(2, 3, 65, 97), torch.randint(0, 5, (2, 65, 97))
    target[:, :9] = 255
    with torch.no_grad():
        maps = model.train()(image)
        loss = model.loss(maps, target)
    expected = 0.0
    for m, factor in (("fused", 8), ("scale_1", 8), ("scale_0.75", None), ("scale_0.5", 16)):
        if factor is None:  # 7 x 10 positions of 65 x 97 pixels
            rows, columns = [0, 11, 21, 32, 43, 53, 64], [0, 11, 21, 32, 43, 53, 64, 75, 85, 96]
            labels = target[:, rows][:, :, columns]
        else:
            labels = target[:, ::factor, ::factor]
        expected += float(cross_entropy(maps[m], labels, ignore_index=255))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_frozen_normalisation():
    model = DeepLabV2(5, "resnet18", frozen_norm=True).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model(torch.randn(2, 3, 33, 33))["out"].sum().backward()
    assert model.training and not any(norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(p.grad is None for norm in norms for p in norm.parameters())
    assert not DeepLabV2(5, "resnet18").frozen_norm


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"encoder": "vgg16", "output_stride": 16}, "output_stride"),
        ({"output_stride": 4}, "output_stride"),
        ({"rates": (6, 0)}, "rates"),
        ({"encoder": "resnet"}, "encoder"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        DeepLabV2(**{"encoder": "resnet18", **options})
