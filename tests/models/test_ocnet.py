"""OCNet: trunk, and the three heads against scaled dot-product attention with shared queries and keys."""

from __future__ import annotations

import pytest
import torch
from plain_layers import convolved, error, normalised, randomise
from torch.nn import functional as F

from segops.models import OCNet


def layer(x, conv, norm, rate=1):
    return F.leaky_relu(normalised(convolved(x, conv, rate), norm), 0.01)


def attended(key, value):
    q, v = key.flatten(2).transpose(1, 2), value.flatten(2).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, q, v)  # whose scale is the root of the keys' channels
    return out.transpose(1, 2).reshape(value.shape[0], -1, *key.shape[2:])


def context(x, block, cells=1):
    key, value = layer(x, *block.key[:2]), convolved(x, block.value)
    out = torch.zeros_like(value)
    steps = [side // cells for side in x.shape[2:]]
    for i in range(cells):
        for j in range(cells):
            top, left = i * steps[0], j * steps[1]
            bottom = x.shape[2] if i == cells - 1 else top + steps[0]
            right = x.shape[3] if j == cells - 1 else left + steps[1]
            out[..., top:bottom, left:right] = attended(
                key[..., top:bottom, left:right], value[..., top:bottom, left:right]
            )
    return convolved(out, block.project)


def base(x, head):
    return layer(torch.cat([context(x, head.context), x], 1), *head.merge[:2])


def pyramid(x, head):
    contexts = [context(x, block, cells) for block, cells in zip(head.contexts, (1, 2, 3, 6), strict=True)]
    return layer(torch.cat([layer(x, *head.widen[:2]), *contexts], 1), *head.merge[:2])


def asp(x, head):
    y = layer(x, *head.reduce[:2])
    small = context(F.max_pool2d(y, 2), head.context)
    y = F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=True)
    branches = [layer(y, *head.smooth[:2]), layer(x, *head.point[:2])]
    branches += [layer(x, *conv[:2], rate) for conv, rate in zip(head.atrous, (12, 24, 36), strict=True)]
    return layer(torch.cat(branches, 1), *head.merge[:2])


@pytest.mark.parametrize("variant", [base, pyramid, asp], ids=lambda f: f.__name__)
def test_head_against_plain_attention(variant):
    model = OCNet(3, "resnet18", variant=variant.__name__, channels=16)
    reduce, block, classifier = head = randomise(model.classifier.double().eval())
    x = torch.randn(2, 512, 14, 19, dtype=torch.float64)
    y = normalised(convolved(x, reduce[0]), reduce[1])
    y = y if variant is pyramid else F.leaky_relu(y, 0.01)  # that of the pyramid has no activation here
    expected = convolved(variant(y, block), classifier)
    assert error(head([x]), expected) <= 1e-10


def test_context_is_nothing_at_first():
    block = OCNet(3, "resnet18", channels=16).classifier[1].context
    assert not block(torch.randn(1, 16, 5, 6)).any()


@pytest.mark.parametrize("variant", ["pyramid", "asp"])
@pytest.mark.parametrize("size", [(8, 8), (17, 40)])
def test_small_images(variant, size):
    model = OCNet(3, "resnet18", variant=variant, channels=16).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(("variant", "slope", "rate"), [("base", 0.01, 0.05), ("pyramid", 1, 0.05), ("asp", 0.01, 0.1)])
def test_auxiliary_head(variant, slope, rate):
    head = randomise(OCNet(3, "resnet18", variant=variant, channels=16).aux_classifier.double().eval())
    c4 = torch.randn(2, 256, 5, 6, dtype=torch.float64)
    y = F.leaky_relu(normalised(convolved(c4, head[0]), head[1]), slope)
    assert error(head([c4, c4.new_zeros(1)]), convolved(y, head[4])) <= 1e-10
    assert isinstance(head[3], torch.nn.Dropout2d) and head[3].p == rate


def test_trunk():
    with torch.device("meta"):
        model = OCNet()
    trunk = model.backbone
    assert trunk.maxpool.ceil_mode and model.align_corners and model.aux_classifier[0].bias is not None
    assert [block.conv2.dilation[0] for block in (*trunk.layer3[:2], *trunk.layer4[:2])] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"num_classes": 0}, "num_classes"), ({"channels": 2}, "channels"), ({"variant": "own"}, "variant")],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        OCNet(**{"encoder": "resnet18", **options})
