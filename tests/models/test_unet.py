"""U-Net against plain layers, and the sizes of its paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segops.models import UNet
from segops.models.parts.padding import mirror_pad

THIN = {"channels": (4, 6, 8, 10, 12)}


def made(**options) -> UNet:
    torch.manual_seed(0)
    model = UNet(**{**THIN, **options}).eval().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model


def plain(model: UNet, x: torch.Tensor) -> torch.Tensor:
    """The figure of the paper, by the layers in the order in which they are used."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    ups = iter([m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)])
    it = iter(layers)

    def conv(x):
        layer = next(it)
        x = F.conv2d(x, layer.weight, layer.bias, padding=int(model.padded))
        if model.padded:
            n = next(it)
            x = (x - n.running_mean[:, None, None]) / (n.running_var[:, None, None] + 1e-5).sqrt()
            x = x * n.weight[:, None, None] + n.bias[:, None, None]
        return x.clamp(min=0)

    skips = []
    for _ in range(4):
        x = conv(conv(x))
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = conv(conv(x))
    for skip in skips[::-1]:
        if any(isinstance(m, nn.Upsample) for m in model.modules()):
            x = F.interpolate(x, size=(2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=True)
        else:
            up = next(ups)
            x = F.conv_transpose2d(x, up.weight, up.bias, stride=2)
        if model.padded:
            full = torch.zeros(*x.shape[:2], *skip.shape[2:], dtype=x.dtype)
            full[..., : x.shape[2], : x.shape[3]] = x
            x = full
        top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
        x = conv(conv(torch.cat([skip[..., top : top + x.shape[2], left : left + x.shape[3]], x], 1)))
    last = next(it)
    return F.conv2d(x, last.weight, last.bias)


def same(out: torch.Tensor, expected: torch.Tensor) -> bool:
    return out.shape == expected.shape and bool((out - expected).norm() <= 1e-10 * expected.norm())


@pytest.mark.parametrize("options", [{}, {"bilinear": True, "channels": (4, 8, 16, 32, 64)}], ids=str)
@pytest.mark.parametrize("size", [(65, 97), (50, 33), (200, 1)])
def test_logits_of_valid_convolutions_on_the_mirrored_image(size, options):
    model, image = made(num_classes=3, **options), np.random.default_rng(0).normal(size=(1, 3, *size))
    sides = [(92, 92 + (-(s - 4) % 16)) for s in size]  # what comes out is 4, 20, 36, ...
    mirrored = np.pad(image, [(0, 0), (0, 0), *sides], mode="reflect")
    with torch.no_grad():
        expected = plain(model, torch.from_numpy(mirrored))[..., : size[0], : size[1]]
        assert same(model(torch.from_numpy(image)), expected)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (31, 50)])
def test_logits_with_padding(size, bilinear):
    channels = (4, 8, 16, 32, 64) if bilinear else THIN["channels"]
    model, image = made(padded=True, bilinear=bilinear, channels=channels), torch.randn(1, 3, *size).double()
    with torch.no_grad():
        assert same(model(image), plain(model, image))


def test_sizes_of_the_paper():
    with torch.device("meta"):
        model, image = UNet(in_channels=1), torch.empty(1, 1, 572, 572)
        assert [f.shape[2] for f in model.backbone(image)] == [568, 280, 136, 64, 28]
        assert model.classifier(model.backbone(image)).shape == (1, 2, 388, 388)
    assert model.border(388) == (92, 92)


def test_one_pixel_sees_188_to_204():
    model = made(in_channels=1, channels=(1,) * 5).float()
    for p in model.parameters():
        p.data.abs_()  # no unit is off,
    model.backbone.pool = nn.AvgPool2d(2)  # and all four pixels of a pool are seen
    widths = set()
    image = torch.rand(1, 1, 188, 220, requires_grad=True)
    out = model.classifier(model.backbone(image))
    for place in range(4, 20):
        (gradient,) = torch.autograd.grad(out[0, 0, 0, place], image, retain_graph=True)
        seen = gradient[0, 0].sum(0).nonzero().flatten()
        widths.add(int(seen[-1] - seen[0]) + 1)
    assert min(widths) == 188 and max(widths) == 204


def test_mirrors_of_mirrors():
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    out = mirror_pad(torch.from_numpy(x), (7, 5), (1, 9))
    assert np.array_equal(out.numpy(), np.pad(x, [(0, 0), (0, 0), (7, 5), (1, 9)], mode="reflect"))
    assert mirror_pad(torch.ones(1, 1, 1, 2), (2, 2), (0, 0)).shape == (1, 1, 5, 2)


def test_one_channel_in():
    assert made(in_channels=1)(torch.randn(1, 1, 33, 33).double()).shape == (1, 2, 33, 33)
    with pytest.raises(ValueError, match=r"image: expected \(N, 1, H, W\)"):
        made(in_channels=1)(torch.randn(1, 3, 33, 33).double())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"channels": (4,)}, "channels"),
        ({"dropout": 2}, "dropout"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        UNet(**options)


def test_too_small_for_the_poolings():
    with pytest.raises(ValueError, match="image: expected 16"):
        made(padded=True)(torch.randn(1, 3, 15, 40).double())
