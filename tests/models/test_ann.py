"""ANN: trunk, and the head against softmax over the averages of adaptive pooling."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, layer, normalised, randomise
from torch.nn import functional as F

from segops.models import ANN


def pooled(x):
    """The 110 averages: (N, C, 1 + 9 + 36 + 64)."""
    return torch.cat([F.adaptive_avg_pool2d(x, n).flatten(2) for n in (1, 3, 6, 8)], 2)


def attended(query, key, value):
    weights = (query.flatten(2).transpose(1, 2) @ pooled(key) * query.shape[1] ** -0.5).softmax(2)
    assert weights.shape[2] == 110
    return (pooled(value) @ weights.transpose(1, 2)).view(value.shape[0], -1, *query.shape[2:])


def test_head_against_plain_attention():
    head = randomise(ANN(3, "resnet18", channels=16).classifier.double().eval())
    low, high = torch.randn(2, 256, 9, 13, dtype=torch.float64), torch.randn(2, 512, 9, 13, dtype=torch.float64)
    fusion = head.fusion
    context = attended(layer(high, *fusion.query[:2]), layer(low, *fusion.key[:2]), convolved(low, fusion.value))
    x = torch.cat([convolved(context, fusion.context), high], 1)
    x = normalised(convolved(x, fusion.fuse[0]), fusion.fuse[1])  # no ReLU here
    x = layer(x, *head.reduce[:2])
    own = head.attention
    key = layer(x, *own.key[:2])  # queries are keys
    context = attended(key, key, convolved(x, own.value))
    x = layer(torch.cat([convolved(context, own.context), x], 1), *own.fuse[:2])
    assert error(head([low, high]), convolved(x, head.classifier)) <= 1e-10


def test_attention_adds_nothing_at_first():
    head = ANN(3, "resnet18", channels=16).classifier
    for block in (head.fusion, head.attention):
        assert not block.context.weight.any() and not block.context.bias.any()


def test_trunk():
    with torch.device("meta"):
        model = ANN()
    trunk = model.backbone
    assert trunk.maxpool.ceil_mode
    assert [block.conv2.dilation[0] for block in (*trunk.layer3[:2], *trunk.layer4[:2])] == [1, 2, 2, 4]
    assert isinstance(model.aux_classifier[3], torch.nn.Dropout2d) and model.aux_classifier[3].p == 0.05
    assert model.align_corners and model.aux_classifier[0].bias is not None


@pytest.mark.parametrize("option", ["num_classes", "channels"])
def test_bad_numbers(option):
    with pytest.raises(ValueError, match=option):
        ANN(**{"encoder": "resnet18", option: 0})
