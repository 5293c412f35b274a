"""FCN against torchvision's, and the dilations of its trunk in the three conventions."""

from __future__ import annotations

import pytest
import torch
import torchvision
from plain_layers import convolved, error, layer, randomise

from segops.models import FCN, encoder


def test_state_dict_and_logits_of_torchvision():
    peer = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    model = FCN(21, "resnet50").eval()
    model.load_state_dict(peer.state_dict())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        out, expected = model(image), peer(image)["out"]
    assert (out - expected).norm() <= 1e-5 * expected.norm()


# (stride, dilation) of the 3 x 3 convolution of each of the first two blocks of layers 2, 3 and 4, at stride 8.
LAYERS = {
    "torchvision": [[(2, 1), (1, 1)], [(1, 1), (1, 2)], [(1, 2), (1, 4)]],
    "semseg": [[(2, 1), (1, 1)], [(1, 2), (1, 2)], [(1, 4), (1, 4)]],
    "caffe": [[(1, 1), (1, 1)], [(1, 2), (1, 2)], [(1, 4), (1, 4)]],
}


@pytest.mark.parametrize("convention", LAYERS)
def test_dilations_of_the_trunk(convention):
    with torch.device("meta"):
        trunk = encoder("resnet50", output_stride=8, convention=convention)
    for stage, expected in zip((trunk.layer2, trunk.layer3, trunk.layer4), LAYERS[convention], strict=True):
        convs = [block.conv2 for block in stage[:2]]
        assert [(c.stride[0], c.dilation[0]) for c in convs] == expected
        assert all(c.padding == c.dilation for c in convs)
    assert trunk.layer2[0].conv1.stride[0] == (2 if convention == "caffe" else 1)
    assert trunk.layer2[0].downsample[0].stride == (2, 2) and trunk.layer3[0].downsample[0].stride == (1, 1)


def test_wide_head():
    head = randomise(FCN(3, "resnet18", variant="mmseg").classifier.double().eval())
    x = torch.randn(2, 512, 5, 7, dtype=torch.float64)
    y = layer(layer(x, *head.convs[0][:2]), *head.convs[1][:2])
    y = layer(torch.cat([x, y], 1), *head.merge[:2])
    assert error(head([x]), convolved(y, head.classifier)) <= 1e-10
    with pytest.raises(ValueError, match="variant"):
        FCN(3, "resnet18", variant="own")


def test_multi_grid():
    with torch.device("meta"):
        trunk = encoder("resnet50", output_stride=8, multi_grid=(1, 2, 4))
        assert [block.conv2.dilation[0] for block in trunk.layer4] == [2, 8, 16]  # EMANet's
        with pytest.raises(ValueError, match="multi_grid"):
            encoder("resnet50", multi_grid=(1, 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"output_stride": 4}, "output_stride"), ({"convention": "own"}, "convention"), ({"name": "resnet51"}, "encoder")],
)
def test_bad_options_of_the_encoder(options, named):
    with pytest.raises(ValueError, match=named):
        encoder(**{"name": "resnet18", **options})
