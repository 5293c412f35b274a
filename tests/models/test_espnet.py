"""ESPNet: the block against its equations, sizes, and what the authors' defaults would count."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import ESPNet
from segops.models.espnet import ESP


@pytest.mark.parametrize(("stride", "residual"), [(1, True), (1, False), (2, False)])
def test_block(stride, residual):
    block = ESP(23, 23, stride=stride, residual=residual).double().eval()
    norm, act = block.norm_act
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 23, 17, 21, dtype=torch.float64)
    reduced = F.conv2d(x, block.reduce.weight, stride=stride, padding=0 if stride == 1 else 1)
    d = [F.conv2d(reduced, b.weight, padding=r, dilation=r) for b, r in zip(block.branches, (1, 2, 4, 8, 16))]
    assert [y.shape[1] for y in d] == [7, 4, 4, 4, 4]  # the first has what five equal widths leave over
    # Hierarchical feature fusion: the first rate stands alone.
    joined = torch.cat([d[0], d[1], d[1] + d[2], d[1] + d[2] + d[3], d[1] + d[2] + d[3] + d[4]], 1)
    y = joined + x if residual else joined
    y = (y - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + 1e-3).sqrt()
    y = y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    expected = torch.where(y > 0, y, act.weight.view(-1, 1, 1) * y)
    assert (block(x) - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (63, 70), (9, 9)])
def test_sizes(size):
    model, image = ESPNet(3, (1, 1)).eval(), torch.randn(1, 3, *size)
    with torch.no_grad():
        one, two, three = model.backbone(image)
        logits = model.logits(image)["out"]
    halves = [tuple(-(-side // 2**level) for side in size) for level in (1, 2, 3)]
    assert [f.shape[1:] for f in (one, two, three)] == [(19, *halves[0]), (131, *halves[1]), (256, *halves[2])]
    assert logits.shape[-2:] == tuple(2 * side for side in halves[0])  # one more than an odd image has


@pytest.mark.parametrize("num_classes", [1, 2, 4])
def test_few_classes(num_classes):
    model = ESPNet(num_classes, (1, 1))
    assert model(torch.randn(2, 3, 32, 32))["out"].shape == (2, num_classes, 32, 32)


def test_encoder_alone():
    model = ESPNet(3, (1, 1), decoder=False).eval()
    with torch.no_grad():
        assert model.logits(torch.randn(1, 3, 64, 96))["out"].shape == (1, 3, 8, 12)
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_default_of_the_authors_class():
    model = ESPNet(20, (2, 3))  # q = 3; what they released has 8
    assert sum(p.numel() for p in model.parameters()) == 203_189


@pytest.mark.parametrize("blocks", [(1,), (-1, 2), -3, (1.5, 2)])
def test_bad_blocks(blocks):
    with pytest.raises((TypeError, ValueError), match="blocks"):
        ESPNet(3, blocks)
