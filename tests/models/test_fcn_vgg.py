"""FCN on VGG: crops and sums against a build of plain layers, and what counts of parameters can not see."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from segops.models import FCNVGG
from segops.models.parts.deconv import BilinearDeconv

THIN = {"channels": (4, 4, 6, 8, 8), "fc_channels": 16}


def made(**options) -> FCNVGG:
    torch.manual_seed(0)
    model = FCNVGG(3, **THIN, **options).eval().double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def bilinear(classes: int, factor: int) -> torch.Tensor:
    """A filter for each pair of classes, of the formula in Caffe: 1 - |i / f - c|."""
    centre = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = torch.tensor([1 - abs(i / factor - centre) for i in range(2 * factor)], dtype=torch.double)
    weight = torch.zeros(classes, classes, 2 * factor, 2 * factor, dtype=torch.double)
    for k in range(classes):
        weight[k, k] = line[:, None] * line
    return weight


def expected(model: FCNVGG, stride: int, image: torch.Tensor, scales=(1, 1)) -> torch.Tensor:
    """Each layer by the list of the released nets."""
    p = dict(model.named_parameters())
    x, pools = image, []
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for i in range(depth):
            name = f"backbone.stages.{stage}.{2 * i}."
            x = F.conv2d(x, p[name + "weight"], p[name + "bias"], padding=100 if stage == i == 0 else 1).relu()
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)

    def conv(name, x):
        return F.conv2d(x, p[f"classifier.{name}.weight"], p[f"classifier.{name}.bias"])

    x = conv("score", conv("fc7", conv("fc6", x).relu()).relu())
    if stride <= 16:
        x = F.conv_transpose2d(x, bilinear(3, 2), stride=2)
        x = x + conv("pool_scores.0", pools[3] * scales[0])[..., 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
    if stride == 8:
        x = F.conv_transpose2d(x, bilinear(3, 2), stride=2)
        x = x + conv("pool_scores.1", pools[2] * scales[1])[..., 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
    offset = {32: 19, 16: 27, 8: 31}[stride]
    x = F.conv_transpose2d(x, bilinear(3, stride), stride=stride)
    return x[..., offset : offset + image.shape[2], offset : offset + image.shape[3]]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_logits_of_plain_layers(stride):
    model, image = made(stride=stride), torch.randn(1, 3, 65, 97).double()
    with torch.no_grad():
        out, plain = model(image), expected(model, stride, image)
    assert out.shape == plain.shape and (out - plain).norm() <= 1e-10 * plain.norm()


def test_at_once_scales_the_pools():
    model, image = made(at_once=True), torch.randn(1, 3, 33, 40).double()
    with torch.no_grad():
        out, plain = model(image), expected(model, 8, image, (0.01, 0.0001))
    assert (out - plain).norm() <= 1e-10 * plain.norm()


def test_learnt_transposed_convolutions_begin_as_the_fixed_ones():
    fixed = FCNVGG(3, **THIN).double().eval()
    learnt = FCNVGG(3, **THIN, learn_deconv=True).double().eval()
    missing = learnt.load_state_dict(fixed.state_dict(), strict=False)
    assert len(missing.missing_keys) == 3 and not missing.unexpected_keys  # fixed ones have no state
    image = torch.randn(1, 3, 33, 33).double()
    for model in (fixed, learnt):
        for conv in (model.classifier.score, *model.classifier.pool_scores):
            assert not conv.weight.any()
            torch.nn.init.ones_(conv.weight)
    assert torch.allclose(fixed(image), learnt(image), rtol=1e-12, atol=0)


def test_a_constant_stays_constant_inside():
    up = BilinearDeconv(2, 8, padding=4)
    out = up(torch.ones(1, 2, 5, 6))
    assert out.shape == (1, 2, 40, 48) and torch.allclose(out[..., 4:-4, 4:-4], torch.ones(1, 2, 32, 40))
    smooth = torch.randn(1, 2, 5, 6)
    plain = F.interpolate(smooth, scale_factor=8, mode="bilinear")
    assert torch.allclose(up(smooth)[..., 4:-4, 4:-4], plain[..., 4:-4, 4:-4], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (31, 34), (64, 32)])
def test_any_size(size):
    assert FCNVGG(3, **THIN).eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_weights_of_imagenet(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False).to("meta"))
    with torch.device("meta"):
        FCNVGG(pretrained=True)  # shapes fit, from the first convolution to fc7
        with pytest.raises(ValueError, match="pretrained"):
            FCNVGG(pretrained=True, fc_channels=64)

    convs = [
        nn.Conv2d(i, o, 3) for i, o in zip((3, 4, 4, 4, 4, 6, 6, 6, 8, 8, 8, 8, 8), (4, 4, 4, 4, 6, 6, 6, *[8] * 6))
    ]
    full = SimpleNamespace(fc1=nn.Conv2d(8, 16, 7), fc2=nn.Conv2d(16, 16, 1))
    source = SimpleNamespace(features=nn.Sequential(*convs), pre_logits=full)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: {("vgg16", True): source}[name, pretrained])
    model = FCNVGG(3, **THIN, pretrained=True)
    ours = [m for m in model.modules() if isinstance(m, nn.Conv2d)][:15]
    for mine, given in zip(ours, [*convs, full.fc1, full.fc2], strict=True):
        assert torch.equal(mine.weight, given.weight) and torch.equal(mine.bias, given.bias)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"stride": 4}, "stride"), ({"num_classes": 0}, "num_classes"), ({"channels": (4,)}, "channels")],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        FCNVGG(**options)
