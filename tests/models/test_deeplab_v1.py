"""DeepLab v1 against plain layers, its CRF against the formulas, and what counts of parameters can not see."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from segops.models import DeepLabV1

THIN = {"channels": (4, 4, 6, 8, 8), "fc_channels": 16}


def made(**options) -> DeepLabV1:
    torch.manual_seed(0)
    model = DeepLabV1(3, **{**THIN, **options}).eval().double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def plain(model: DeepLabV1, x: torch.Tensor, padding: int, dilation: int, average: bool) -> torch.Tensor:
    convs = iter([m for m in model.modules() if isinstance(m, nn.Conv2d)])

    def conv(x, padding=0, dilation=1):
        layer = next(convs)
        return F.conv2d(x, layer.weight, layer.bias, padding=padding, dilation=dilation)

    for depth, stride, rate in ((2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 2)):
        for _ in range(depth):
            x = conv(x, rate, rate).relu()
        x = F.max_pool2d(x, 3, stride, 1, ceil_mode=True)
    x = F.avg_pool2d(x, 3, 1, 1) if average else x
    return conv(conv(conv(x, padding, dilation).relu()).relu())


@pytest.mark.parametrize(
    ("head", "padding", "dilation"), [("large_fov", 12, 12), ("7x7", 12, 4), ("4x4", 6, 4)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("size", [(65, 97), (32, 46)])
def test_logits_of_plain_layers(head, padding, dilation, size):
    model, image = made(head=head), torch.randn(1, 3, *size).double()
    with torch.no_grad():
        expected = plain(model, image, padding, dilation, head == "large_fov")
        expected = F.interpolate(expected, size=size, mode="bilinear", align_corners=True)
        out = model(image)
    assert (out - expected).norm() <= 1e-10 * expected.norm()


def test_sizes_of_the_paper():
    with FakeTensorMode():
        model = DeepLabV1()
        features = model.backbone(torch.empty(1, 3, 321, 321))
        assert [f.shape[2] for f in features] == [161, 81, 41, 41, 41]
        assert model.classifier(features).shape == (1, 21, 41, 41)
    fc6 = model.classifier.fc[0]
    assert fc6.dilation == (12, 12) and 12 * (fc6.kernel_size[0] - 1) + 1 == 25


def mean_field(logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Kraehenbuehl and Koltun: all pairs of pixels, Potts, 10 steps; kernels divided by the roots of both sums."""
    labels, height, width = logits.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place, colour = torch.stack([y, x]).flatten(1).T.double(), image.flatten(1).T.double()
    apart, other = torch.cdist(place, place) ** 2, torch.cdist(colour, colour) ** 2
    total = 0
    for weight, energy in ((3, apart / (2 * 3**2)), (4, apart / (2 * 121**2) + other / (2 * 5**2))):
        kernel = (-energy).exp()
        root = kernel.sum(1).rsqrt()
        total = total + weight * root[:, None] * kernel * root
    unary = logits.flatten(1).log_softmax(0)
    argument = unary
    for _ in range(10):
        argument = unary + argument.softmax(0) @ total
    return argument.softmax(0).view(labels, height, width)


def test_crf_of_the_colours():
    image = torch.randint(0, 256, (1, 3, 5, 6)).repeat_interleave(3, 2).repeat_interleave(2, 3).double()
    image = (image + torch.randint(-5, 6, image.shape)).clamp(0, 255)
    mean, std = (0.4, 0.5, 0.6), (0.01, 0.2, 2.0)
    normalised = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with_crf, without = made(crf=True, mean=mean, std=std), made()
    with_crf.crf.algorithm = "exact"
    with torch.no_grad():
        logits, out = without(normalised), with_crf(normalised).softmax(1)
    expected = mean_field(logits[0], image[0])
    assert (expected - logits[0].softmax(0)).norm() > 1e-2 * expected.norm()  # it does something
    assert (out[0] - expected).norm() <= 1e-10 * expected.norm()
    assert with_crf.state_dict().keys() >= without.state_dict().keys()
    assert sum(p.numel() for p in with_crf.parameters()) == sum(p.numel() for p in without.parameters())


def test_crf_compiles_and_stays_out_of_training():
    model, image = DeepLabV1(3, **THIN, crf=True).eval(), torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        expected = model(image)
        out = torch.compile(model, backend="aot_eager", fullgraph=True)(image)
        assert (out - expected).norm() <= 1e-5 * expected.norm()
        model.train()
        torch.manual_seed(1)
        maps = model(image)
        torch.manual_seed(1)
        logits = F.interpolate(model.logits(image)["out"], size=(33, 41), mode="bilinear", align_corners=True)
    assert torch.equal(maps["out"], logits)
    torch.compiler.reset()


def test_loss_is_that_of_stride_8():
    model, image = made().train(), torch.randn(2, 3, 65, 97).double()
    target = torch.randint(0, 3, (2, 65, 97))
    target[:, :9] = 255
    torch.manual_seed(1)
    loss = model.loss(model(image), target)
    torch.manual_seed(1)
    coarse = model.logits(image)["out"]
    assert coarse.shape == (2, 3, 9, 13)
    expected = F.cross_entropy(coarse, target[:, ::8, ::8], ignore_index=255)
    assert (loss - expected).abs() <= 1e-10 * expected


@pytest.mark.parametrize("head", ["large_fov", "7x7"])
def test_weights_of_imagenet(monkeypatch, head):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False).to("meta"))
    with torch.device("meta"):
        DeepLabV1(head=head, pretrained=True)  # shapes fit, of the trunk and, with 7 x 7, of fc6 and fc7
        with pytest.raises(ValueError, match="pretrained"):
            DeepLabV1(head=head, pretrained=True, channels=THIN["channels"])


@pytest.mark.parametrize(
    ("options", "named"),
    [({"num_classes": 0}, "num_classes"), ({"head": "5x5"}, "head"), ({"mean": (1, 2)}, "mean"), ({"std": 0}, "std")],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        DeepLabV1(**{**THIN, **options})
