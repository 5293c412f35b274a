"""DilatedNet against plain layers, the first weights of its context module, and sizes."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from segops.models import DilatedNet
from segops.models.dilated_net import begin_as_identity

THIN = {"channels": (4, 4, 6, 8, 8), "fc_channels": 12}
DILATIONS = {
    "voc": (1, 1, 2, 4, 8, 16, 1),
    "camvid": (1, 1, 2, 4, 8, 16, 1),
    "kitti": (1, 1, 2, 4, 8, 1),
    "cityscapes": (1, 1, 2, 4, 8, 16, 32, 64, 1),
    "front_end": (),
}


def made(variant: str, **options) -> DilatedNet:
    torch.manual_seed(0)
    model = DilatedNet(3, variant, **THIN, **options).eval().double()
    for p in model.parameters():
        nn.init.normal_(p, mean=0.02, std=0.2)
    return model


def plain(model: DilatedNet, image: np.ndarray, variant: str) -> torch.Tensor:
    """Scores at stride 8, by the list of the released nets."""
    convs = iter([m for m in model.modules() if isinstance(m, nn.Conv2d)])

    def conv(x, dilation=1, padding=0):
        layer = next(convs)
        return F.conv2d(x, layer.weight, layer.bias, dilation=dilation, padding=padding)

    sides = [(186, 186 + (8 - side % 8) % 8) for side in image.shape[2:]]
    x = torch.from_numpy(np.pad(image, [(0, 0), (0, 0), *sides], mode="reflect"))
    for depth, rate, pool in ((2, 1, True), (2, 1, True), (3, 1, True), (3, 1, False), (3, 2, False)):
        for _ in range(depth):
            x = conv(x, rate).relu()
        x = F.max_pool2d(x, 2) if pool else x
    x = conv(conv(conv(x, 4).relu()).relu())
    for i, rate in enumerate(DILATIONS[variant]):
        padding = rate if variant != "voc" else 33 if i == 0 else 0
        x = conv(x, rate, padding).relu()
    return conv(x) if DILATIONS[variant] else x


@pytest.mark.parametrize(
    ("variant", "size"), [("voc", (65, 97)), ("camvid", (40, 33)), ("kitti", (7, 50)), ("front_end", (1, 9))]
)
def test_logits_of_plain_layers(variant, size):
    model, image = made(variant), np.random.default_rng(0).normal(size=(1, 3, *size))
    with torch.no_grad():
        scores = plain(model, image, variant)
        assert scores.shape[2:] == tuple(-(-side // 8) for side in size)
        expected = F.interpolate(scores, scale_factor=8, mode="bilinear")[..., : size[0], : size[1]]
        out = model(torch.from_numpy(image))
    assert out.shape == expected.shape and (out - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("learn", [False, True])
def test_cityscapes_ends_with_a_transposed_convolution(learn):
    model, image = made("cityscapes"), np.random.default_rng(0).normal(size=(1, 3, 65, 40))
    if learn:
        state = model.state_dict()
        model = DilatedNet(3, "cityscapes", **THIN, learn_deconv=True).eval().double()
        model.load_state_dict(state, strict=False)  # its filters begin as the fixed ones
        assert model.up.weight.shape == (3, 1, 16, 16)
    line = 1 - (torch.arange(16).double() - 7.5).abs() / 8
    with torch.no_grad():
        scores = plain(model, image, "cityscapes")
        kernel = torch.outer(line, line).expand(3, 1, 16, 16)
        expected = F.conv_transpose2d(scores, kernel, stride=8, padding=4, groups=3)[..., :65, :40]
        out = model(torch.from_numpy(image))
    assert (out - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("variant", ["voc", "camvid", "kitti", "cityscapes"])
def test_context_begins_as_the_identity(variant):
    torch.manual_seed(0)
    context = DilatedNet(5, variant, **THIN).classifier[1].double()
    assert all(not m.bias.any() for m in context if isinstance(m, nn.Conv2d))
    x = torch.rand(1, 5, 40, 44).double() + 1
    assert 0 < (context(x) - x).norm() < 0.25 * x.norm()  # with noise
    begin_as_identity(context, 5, noise=0)
    x = torch.randn(1, 5, 40, 44).double()
    assert torch.allclose(context(x), x.clamp(min=0), rtol=1e-12, atol=0)


def test_first_weights_of_the_large_module():
    torch.manual_seed(0)
    classes = 21
    convs = [m for m in DilatedNet(classes, **THIN).classifier[1] if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [42, 42, 84, 168, 336, 672, 672, 21]
    for conv in convs[1:4]:
        after, before, *_ = conv.weight.shape
        for b in range(0, after, 5):
            for a in range(before):
                if a * classes // before == b * classes // after:
                    assert conv.weight[b, a, 1, 1] == classes / after
        noise = conv.weight[:, :, 0]
        assert abs(noise.std() / (0.01 * classes / after) - 1) < 0.05 and abs(noise.mean()) < 0.1 * noise.std()


def test_sizes_of_the_paper():
    with FakeTensorMode():
        model = DilatedNet()
        features = model.backbone(torch.empty(1, 3, 900, 900))
        front = model.classifier[0](features[-1])
        assert [f.shape[2] for f in features] == [448, 222, 108, 102, 90] and front.shape == (1, 21, 66, 66)
        assert model.classifier[1](front).shape == (1, 21, 66, 66)


def test_weights_of_imagenet(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False).to("meta"))
    with torch.device("meta"):
        DilatedNet(pretrained=True)  # shapes fit, from the first convolution to fc7
        with pytest.raises(ValueError, match="pretrained"):
            DilatedNet(pretrained=True, fc_channels=64)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"num_classes": 0}, "num_classes"), ({"variant": "coco"}, "variant"), ({"learn_deconv": True}, "learn_deconv")],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        DilatedNet(**{**THIN, **options})
