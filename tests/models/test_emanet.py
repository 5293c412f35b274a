"""EMANet: dilations, the head against the equations, the moving bases, what gets no gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import EMANet


def made() -> EMANet:
    torch.manual_seed(0)
    model = EMANet(3, "resnet18", multi_grid=(1, 2), channels=16, num_bases=4).double()
    for p in model.classifier.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for name, buffer in model.classifier.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model


def norm(layer, x):
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]


def test_dilations_of_the_last_stage():
    with torch.device("meta"):
        trunk = EMANet().backbone
    convs = [block.conv2 for block in trunk.layer4]
    assert [(c.dilation[0], c.padding[0], c.stride[0]) for c in convs] == [(2, 2, 1), (8, 8, 1), (16, 16, 1)]
    assert [block.conv2.dilation[0] for block in trunk.layer3][:3] == [1, 2, 2]
    assert trunk.conv1[0].kernel_size == (3, 3)  # the deep stem


def test_head_against_the_equations():
    model = made().eval()
    head, unit = model.classifier, model.classifier.attention
    c5 = torch.randn(2, 512, 7, 9, dtype=torch.float64)
    x = norm(head.reduce[1], F.conv2d(c5, head.reduce[0].weight, padding=1)).relu()
    y = F.conv2d(x, unit.conv1.weight, unit.conv1.bias).flatten(2)
    mu = unit.bases
    for _ in range(3):
        z = torch.softmax(y.transpose(1, 2) @ mu, 2)  # (N, pixels, bases): the E step, equation 3
        mu = y @ (z / (1e-6 + z.sum(1, keepdim=True)))  # the M step, equation 4
        mu = mu / (1e-6 + mu.norm(dim=1, keepdim=True))
    again = (mu @ z.transpose(1, 2)).view_as(x).relu()
    x = (norm(unit.norm, F.conv2d(again, unit.conv2.weight)) + x).relu()
    x = norm(head.merge[1], F.conv2d(x, head.merge[0].weight, padding=1)).relu()
    expected = F.conv2d(x, head.classifier.weight, head.classifier.bias)
    with torch.no_grad():
        out, bases = head([c5])
    assert (out - expected).norm() <= 1e-10 * expected.norm()
    assert (bases - mu).norm() <= 1e-10 * mu.norm()


def test_bases_follow_the_images_of_training_only():
    model, image = made(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = model.classifier.attention.bases.clone()
    model.eval()(image)
    assert torch.equal(model.classifier.attention.bases, before)
    maps = model.train()(image)
    assert torch.equal(model.classifier.attention.bases, before)  # a forward alone moves nothing
    model.loss(maps, torch.zeros(2, 64, 64, dtype=torch.long)).backward()
    expected = 0.9 * before + 0.1 * maps["bases"].detach().mean(0)
    assert torch.allclose(model.classifier.attention.bases, expected)
    assert model.classifier.attention.conv1.weight.grad is None


def test_order_of_pixels_does_not_matter_to_the_attention():
    unit = made().eval().classifier.attention
    x, order = torch.randn(1, 16, 5, 6, dtype=torch.float64), torch.randperm(30)
    mixed = unit(x.flatten(2)[..., order].view_as(x))[0].flatten(2)
    assert torch.allclose(mixed, unit(x)[0].flatten(2)[..., order])


@pytest.mark.parametrize("option", ["num_classes", "channels", "num_bases"])
def test_bad_numbers(option):
    with pytest.raises(ValueError, match=option):
        EMANet(**{"encoder": "resnet18", "multi_grid": (1, 2), option: 0})
