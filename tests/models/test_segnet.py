"""SegNet against a build of plain layers, its sizes and its channels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from segops.models import SegNet


def made(**options) -> SegNet:
    torch.manual_seed(0)
    model = SegNet(3, channels=(4, 5, 6, 7, 8), **options).eval().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model


def layer(x: torch.Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool) -> torch.Tensor:
    x = F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    if norm is not None:
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        x = x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]
    return x.clamp(min=0) if relu else x


def pool(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The maxima of 2 x 2 pixels, cut at the edge, and where they are: a map with ones."""
    n, c, h, w = x.shape
    full = torch.full((n, c, h + h % 2, w + w % 2), -torch.inf, dtype=x.dtype)
    full[..., :h, :w] = x
    cells = full.reshape(n, c, (h + 1) // 2, 2, (w + 1) // 2, 2).transpose(3, 4).flatten(-2)
    first = F.one_hot(cells.argmax(-1), 4).to(x.dtype)
    where = first.unflatten(-1, (2, 2)).transpose(3, 4).reshape(full.shape)[..., :h, :w]
    return cells.max(-1).values, where


def unpool(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    h, w = where.shape[2:]
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :h, :w] * where


def plain(model: SegNet, x: torch.Tensor, depths: tuple[int, ...], basic: bool) -> torch.Tensor:
    convs = iter([m for m in model.modules() if isinstance(m, nn.Conv2d)])
    norms = iter([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    wheres = []
    for depth in depths:
        for _ in range(depth):
            x = layer(x, next(convs), next(norms), True)
        x, where = pool(x)
        wheres.append(where)
    for depth, where in zip(depths[::-1], wheres[::-1]):
        x = unpool(x, where)
        for _ in range(depth):
            conv = next(convs)
            norm = next(norms, None)  # the last convolution has none, and no activation
            x = layer(x, conv, norm, relu=norm is not None and not basic)
    return layer(x, next(convs), None, relu=False) if basic else x


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 31), (1, 2)])
@pytest.mark.parametrize("basic", [False, True])
def test_logits_of_plain_layers(basic, size):
    model, image = made(basic=basic), torch.randn(1, 3, *size).double()
    x = image
    if basic:  # three channels are less than the window of five, so that all see all
        x = image / (1 + 1e-4 / 5 * (image**2).sum(1, keepdim=True)) ** 0.75
    with torch.no_grad():
        out, expected = model(image), plain(model, x, (1,) * 4 if basic else (2, 2, 3, 3, 3), basic)
    assert out.shape == expected.shape and (out - expected).norm() <= 1e-10 * expected.norm()


def test_sizes_of_the_paper():
    with torch.device("meta"):
        _, pooled = SegNet().backbone(torch.empty(1, 3, 360, 480))
        assert [tuple(p.shape[2:]) for p, _ in pooled] == [(180, 240), (90, 120), (45, 60), (23, 30), (12, 15)]
        assert [tuple(size) for _, size in pooled] == [(360, 480), (180, 240), (90, 120), (45, 60), (23, 30)]


def test_channels_fall_in_the_last_convolution_of_each_stage_and_none_follows_the_classifier():
    with torch.device("meta"):
        decoder = SegNet().classifier
    convs = [[m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d)] for stage in decoder.stages]
    assert convs == [[512] * 3, [512, 512, 256], [256, 256, 128], [128, 64], [64, 11]]
    last = decoder.stages[-1][-1]
    assert isinstance(last, nn.Conv2d) and last.kernel_size == (3, 3) and last.padding == (1, 1)


def test_weights_of_imagenet(monkeypatch):
    convs = [nn.Conv2d(i, o, 3) for i, o in zip((3, *[4] * 12), [4] * 13)]
    layers = [m for conv in convs for m in (conv, nn.BatchNorm2d(4).requires_grad_(False), nn.ReLU())]
    for layer in layers[1::3]:
        layer.running_mean.normal_()
        layer.weight.normal_()
    source = SimpleNamespace(features=nn.Sequential(*layers), pre_logits=SimpleNamespace(fc1=None, fc2=None))
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: {("vgg16_bn", True): source}[name, pretrained])
    ours = SegNet(3, channels=[4] * 5, pretrained=True).backbone.state_dict()
    assert all(map(torch.equal, ours.values(), source.features.state_dict().values()))
    with pytest.raises(ValueError, match="pretrained"):
        SegNet(3, channels=[4, 4, 4, 4, 6], pretrained=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"basic": True, "pretrained": True}, "pretrained"),
        ({"channels": (4, 4)}, "channels"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        SegNet(**options)
