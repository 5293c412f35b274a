"""U-Net: 572 to 388, what a pixel sees, joining, and the mirrored border."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segops.models import UNet
from segops.models.unet import mirrored, valid_size


def test_valid_convolutions_take_572_to_388():
    with torch.device("meta"):
        model = UNet(2, in_channels=1, padding=False).eval()
        features = model.backbone(torch.empty(1, 1, 572, 572))
        assert [f.shape[-1] for f in features] == [568, 280, 136, 64, 28]
        assert model.classifier(features).shape == (1, 2, 388, 388)
    assert valid_size(388) == 572 and valid_size(389) == 588


def test_a_pixel_sees_188_to_204_pixels_of_the_image():
    model = UNet(1, 1, in_channels=1, padding=False).double().eval()
    model.backbone.pool = torch.nn.AvgPool2d(2)  # which passes gradients to all that a maximum may depend on
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)  # nothing cancels
    widths = []
    for phase in range(16):
        image = torch.ones(1, 1, 252, 252, dtype=torch.float64, requires_grad=True)
        model.classifier(model.backbone(image))[0, 0, 30, 26 + phase].backward()
        seen = image.grad[0, 0].nonzero()[:, 1]
        assert int(seen.min()) > 0 and int(seen.max()) < 251
        widths.append(int(seen.max() - seen.min() + 1))
    assert (min(widths), max(widths)) == (188, 204)


def test_logits_of_an_image_are_those_of_its_mirrored_tile():
    model = UNet(3, 4, padding=False).eval()
    image = torch.randn(1, 3, 40, 61)
    tile = np.pad(image.numpy(), [(0, 0), (0, 0), (98, 98), (95, 96)], mode="reflect")
    assert tile.shape[-2:] == (valid_size(40), valid_size(61))
    with torch.no_grad():
        whole = model.classifier(model.backbone(torch.from_numpy(tile)))
        assert torch.allclose(model(image), whole[..., 6:46, 3:64], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 5), (2, 7), (13, 40)])
def test_mirroring(size):
    x = torch.randn(1, 2, *size)
    expected = np.pad(
        x.numpy(), [(0, 0), (0, 0), *[((50 - s) // 2, 50 - s - (50 - s) // 2) for s in size]], mode="reflect"
    )
    assert np.array_equal(mirrored(x, (50, 50)).numpy(), expected)


def test_padded_path_against_plain_layers():
    model = UNet(3, 4).double().eval()
    x = torch.randn(2, 3, 33, 50, dtype=torch.float64)
    with torch.no_grad():
        features = model.backbone(x)
        assert [f.shape[1:] for f in features] == [(4, 33, 50), (8, 16, 25), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
        y = features[-1]
        for i, skip in enumerate(features[-2::-1]):
            up = model.classifier.ups[i]
            y = F.conv_transpose2d(y, up.weight, up.bias, stride=2)
            whole = torch.zeros(*y.shape[:2], *skip.shape[-2:], dtype=torch.float64)
            whole[..., : y.shape[-2], : y.shape[-1]] = y
            y = model.classifier.levels[i](torch.cat([skip, whole], 1))
        last = model.classifier.classifier
        expected = torch.einsum("kc,nchw->nkhw", last.weight[..., 0, 0], y) + last.bias.view(-1, 1, 1)
        assert (model(x) - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("option", ["channels", "in_channels", "num_classes"])
def test_bad_numbers(option):
    with pytest.raises(ValueError, match=option):
        UNet(**{option: 0})


def test_images_of_other_channels():
    model = UNet(2, 2, in_channels=1)
    with pytest.raises(ValueError, match=r"image: expected \(N, 1, H, W\)"):
        model(torch.randn(1, 3, 32, 32))
    assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 2, 32, 32)
