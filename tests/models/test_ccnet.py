"""CCNet: trunk, and the head against attention that is masked to rows and columns."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, normalised, randomise
from torch.nn import functional as F

from segops.models import CCNet


def layer(x, conv, norm):
    return F.leaky_relu(normalised(convolved(x, conv), norm), 0.01)


def criss_cross(x, attention):
    """Softmax over all pixels, of which only those of the same row or column are let through."""
    n, c, h, w = x.shape
    q, k, v = (convolved(x, getattr(attention, f"{name}_conv")).flatten(2) for name in ("query", "key", "value"))
    row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
    seen = (row[:, None] == row) | (column[:, None] == column)
    weights = (q.transpose(1, 2) @ k).masked_fill(~seen, float("-inf")).softmax(2)
    return attention.gamma * (v @ weights.transpose(1, 2)).view(n, c, h, w) + x


def test_head_against_masked_attention():
    head = randomise(CCNet(3, "resnet18", channels=16).classifier.double().eval())
    x = torch.randn(2, 512, 5, 7, dtype=torch.float64)
    y = layer(x, *head.reduce[:2])
    for _ in range(2):
        y = criss_cross(y, head.attention)
    y = layer(y, *head.smooth[:2])
    y = layer(torch.cat([x, y], 1), *head.merge[:2])
    assert error(head([x]), convolved(y, head.classifier)) <= 1e-10


def test_two_passes_see_the_whole_image_and_one_does_not():
    attention = randomise(CCNet(3, "resnet18", channels=16).classifier.double().eval()).attention
    for passes, seen in ((1, 5 + 7 - 1), (2, 5 * 7)):
        attention.recurrence = passes
        x = torch.randn(1, 16, 5, 7, dtype=torch.float64, requires_grad=True)
        attention(x)[0, :, 2, 3].sum().backward()
        assert int((x.grad.abs().sum(1) > 0).sum()) == seen


def test_trunk():
    with torch.device("meta"):
        model = CCNet()
    trunk = model.backbone
    assert trunk.maxpool.ceil_mode and model.align_corners
    assert [block.conv2.dilation[0] for block in (*trunk.layer3[:2], *trunk.layer4[:2])] == [2, 2, 4, 4]
    assert model.aux_classifier[0].bias is not None and model.aux_classifier[2].negative_slope == 0.01
    assert isinstance(model.aux_classifier[3], torch.nn.Dropout2d) and model.aux_classifier[3].p == 0.1
    assert model.backbone(torch.empty(1, 3, 769, 769, device="meta"))[-1].shape[2:] == (97, 97)


@pytest.mark.parametrize("option", ["num_classes", "channels", "recurrence"])
def test_bad_numbers(option):
    with pytest.raises(ValueError, match=option):
        CCNet(**{"encoder": "resnet18", option: -1})
