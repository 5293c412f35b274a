"""ISANet: trunk, and the head against a loop over lattices and blocks."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, layer, randomise
from torch.nn import functional as F

from segops.models import ISANet


def attended(x, relation, groups):
    """Softmax attention within each group of pixels, one after the other."""
    q, k = (layer(layer(x, *part[0][:2]), *part[1][:2]) for part in (relation.query, relation.key))
    v = convolved(x, relation.value)
    out = torch.zeros_like(v)
    for rows, columns in groups:
        part = (..., rows, columns)
        a, b, c = (t[part].flatten(2) for t in (q, k, v))
        weights = (a.transpose(1, 2) @ b * q.shape[1] ** -0.5).softmax(2)
        out[part] = (c @ weights.transpose(1, 2)).view(out[part].shape)
    return layer(out, *relation.output[:2])


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_head_against_loops(size):
    factor = 4
    head = randomise(ISANet(3, "resnet18", channels=8, down_factor=factor).classifier.double().eval())
    x = torch.randn(2, 512, *size, dtype=torch.float64)
    y = layer(x, *head.reduce[:2])
    pads = [(-s) % factor for s in size]
    z = F.pad(y, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
    h, w = z.shape[2:]
    lattices = [(slice(i, h, factor), slice(j, w, factor)) for i in range(factor) for j in range(factor)]
    blocks = [(slice(i, i + factor), slice(j, j + factor)) for i in range(0, h, factor) for j in range(0, w, factor)]
    far = attended(z, head.attention.global_relation, lattices)
    near = attended(far, head.attention.local_relation, blocks)
    near = near[..., pads[0] // 2 : pads[0] // 2 + size[0], pads[1] // 2 : pads[1] // 2 + size[1]]
    y = layer(torch.cat([y, near], 1), *head.attention.join[0][:2])
    assert error(head([x]), convolved(y, head.classifier)) <= 1e-10


def test_trunk():
    with torch.device("meta"):
        model = ISANet()
    trunk = model.backbone
    assert model.align_corners and model.aux_classifier[0].bias is None
    assert trunk.maxpool.ceil_mode
    assert [block.conv2.dilation[0] for block in (*trunk.layer3[:2], *trunk.layer4[:2])] == [1, 2, 2, 4]
    assert isinstance(model.aux_classifier[3], torch.nn.Dropout2d) and model.aux_classifier[3].p == 0.05


@pytest.mark.parametrize("option", ["num_classes", "channels", "down_factor"])
def test_bad_numbers(option):
    with pytest.raises(ValueError, match=option):
        ISANet(**{"encoder": "resnet18", option: 0})
