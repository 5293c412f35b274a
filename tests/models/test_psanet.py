"""PSANet: trunk, and the head against a loop over all pairs of positions."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, layer, randomise
from torch.nn import functional as F

from segops.models import PSANet


def masks(predicted, size):
    """(N, sources, receivers), of the collecting branch: what each receiver has to say of each source in its window."""
    n, _, h, w = predicted.shape
    half, out = size // 2, torch.zeros(n, h * w, h * w, dtype=predicted.dtype)
    for y in range(h):
        for x in range(w):
            for sy in range(h):
                for sx in range(w):
                    i, j = sy - y + half, sx - x + half
                    if 0 <= i < size and 0 <= j < size:
                        out[:, sy * w + sx, y * w + x] = predicted[:, i * size + j, y, x]
    return out


@pytest.mark.parametrize("size", [(7, 9), (6, 5)])
def test_head_against_loops(size):
    head = randomise(PSANet(3, "resnet18", channels=8, mask_size=5).classifier.double().eval())
    psa, conv, norm, _, _, classifier = head
    x = torch.randn(2, 512, *size, dtype=torch.float64)
    small = [(side - 1) // 2 + 1 for side in size]
    contexts = []
    for reduce, attention, collect in (
        (psa.reduce, psa.attention, True),
        (psa.reduce_p, psa.attention_p, False),
    ):
        y = F.interpolate(layer(x, *reduce[:2]), size=small, mode="bilinear", align_corners=True)
        mask = masks(convolved(layer(y, *attention[:2]), attention[3]), 5)
        # Distributing, the masks are those that sources predict of their receivers; the softmax is over sources for both.
        weights = (mask if collect else mask.transpose(1, 2)).softmax(1)
        contexts.append((y.flatten(2) @ weights).view_as(y))
    y = layer(torch.cat(contexts, 1), *psa.proj[:2])
    y = F.interpolate(y, size=size, mode="bilinear", align_corners=True)
    y = layer(torch.cat([x, y], 1), conv, norm)
    assert error(head([x]), convolved(y, classifier)) <= 1e-10


def test_trunk_and_masks():
    with torch.device("meta"):
        model = PSANet()
    trunk = model.backbone
    assert [block.conv2.dilation[0] for block in (*trunk.layer3[:2], *trunk.layer4[:2])] == [2, 2, 4, 4]
    assert model.align_corners and trunk.conv1[0].kernel_size == (3, 3)
    assert isinstance(model.aux_classifier[3], torch.nn.Dropout2d) and model.aux_classifier[3].p == 0.1
    small = model.backbone(torch.empty(1, 3, 465, 465, device="meta"))[-1].shape[-1]
    assert small == 59 and model.classifier[0].mask_size == (59, 59)  # 2 x 30 - 1, for the shrunken map of 30


@pytest.mark.parametrize(("option", "value"), [("num_classes", 0), ("channels", 0), ("mask_size", 4)])
def test_bad_numbers(option, value):
    with pytest.raises(ValueError, match=option):
        PSANet(**{"encoder": "resnet18", option: value})
