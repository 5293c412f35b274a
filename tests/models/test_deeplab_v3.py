"""DeepLab v3 against torchvision's, and the paper's head against its description in plain torch."""

from __future__ import annotations

import pytest
import torch
import torchvision
from plain_layers import error, layer, randomise
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from segops.models import DeepLabV3


def test_state_dict_and_logits_of_torchvision():
    torch.manual_seed(0)
    peer = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    randomise(peer.classifier)
    state = peer.state_dict()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = peer(image)
    for aux in (True, False):
        with torch.device("meta"):
            model = DeepLabV3(21, "resnet50", aux=aux).eval()
        kept = {name: tensor for name, tensor in state.items() if aux or not name.startswith("aux_")}
        model.load_state_dict(kept, assign=True)
        with torch.no_grad():
            out = model(image)
            assert error(out, expected["out"]) <= 1e-5
            if aux:
                out = F.interpolate(model.aux_classifier(model.backbone(image)), (65, 97), mode="bilinear")
                assert error(out, expected["aux"]) <= 1e-5


# Variant, output stride, rates of the pyramid, dilations of the first two blocks of layer 3 and of all of layer 4.
STRUCTURES = [
    ("torchvision", 8, [12, 24, 36], [1, 2], [2, 4, 4]),
    ("torchvision", 16, [6, 12, 18], [1, 1], [1, 2, 2]),
    ("paper", 16, [6, 12, 18], [1, 1], [2, 4, 8]),
    ("paper", 8, [12, 24, 36], [2, 2], [4, 8, 16]),
]


@pytest.mark.parametrize(("variant", "output_stride", "rates", "layer3", "layer4"), STRUCTURES)
def test_dilations(variant, output_stride, rates, layer3, layer4):
    with FakeTensorMode():
        model = DeepLabV3(21, "resnet50", variant=variant, output_stride=output_stride)
        assert model.backbone(torch.empty(1, 3, 65, 65))[-1].shape[-1] == 64 // output_stride + 1
    assert model.classifier[0].rates == rates
    assert [block.conv2.dilation[0] for block in model.backbone.layer3[:2]] == layer3
    assert [block.conv2.dilation[0] for block in model.backbone.layer4] == layer4
    assert (model.aux_classifier is None) == (variant == "paper")


def test_default_strides():
    with torch.device("meta"):
        for variant, rates in (("torchvision", [12, 24, 36]), ("paper", [6, 12, 18])):
            assert DeepLabV3(21, "resnet50", variant=variant).classifier[0].rates == rates


@pytest.mark.parametrize(("variant", "channels"), [("paper", 256), ("mmseg", 512)])
def test_heads_without_an_extra_convolution(variant, channels):
    torch.manual_seed(0)
    model = DeepLabV3(5, "resnet18", variant=variant, output_stride=16, multi_grid=(1, 2))
    head = randomise(model.classifier.double().eval())
    x = torch.randn(2, 512, 13, 17, dtype=torch.float64)
    aspp, classifier = head
    one, *holes, pooled = aspp.convs
    branches = [layer(x, one[0], one[1])]
    branches += [layer(x, b[0], b[1], rate) for b, rate in zip(holes, (6, 12, 18), strict=True)]
    branches.append(layer(x.mean((2, 3), keepdim=True), pooled[1], pooled[2]).expand(2, channels, 13, 17))
    expected = layer(torch.cat(branches, 1), aspp.project[0], aspp.project[1])
    expected = torch.einsum("nchw,kc->nkhw", expected, classifier.weight[..., 0, 0]) + classifier.bias[:, None, None]
    assert error(head([x]), expected) <= 1e-10


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variant": "own"}, "variant"),
        ({"output_stride": 4}, "output_stride"),
        ({"multi_grid": (1, 2, 4)}, "multi_grid"),
        ({"encoder": "resnet"}, "encoder"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        DeepLabV3(**{"encoder": "resnet18", **options})
