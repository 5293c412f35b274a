"""OCRNet's head against its equations, what regions are, and the layout of the trunk."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import OCRNet

SMALL = {"num_classes": 5, "encoder": "resnet18", "channels": 16, "key_channels": 8}


def randomised(**options) -> OCRNet:
    torch.manual_seed(0)
    model = OCRNet(**{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def written_out(head: torch.nn.Module, c4: torch.Tensor, c5: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    state = head.state_dict()

    def block(x: torch.Tensor, conv: str, norm: str) -> torch.Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, state[f"{conv}.bias"], padding=weight.shape[2] // 2)
        mean, var, scale, shift = (
            state[f"{norm}.{k}"].view(-1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((x - mean) / (var + 1e-5).sqrt() * scale + shift)

    def blocks(x: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            x = block(x, f"{name}.0", f"{name}.1")
        return x

    def last(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    guess = last(blocks(c4, "guess"), "guess.4")
    x = blocks(c5, "conv")
    n, channels, height, width = x.shape
    small = F.interpolate(guess, (height, width), mode="bilinear", align_corners=True)
    exponent = small.flatten(2).exp()
    share = exponent / exponent.sum(2, keepdim=True)
    regions = torch.einsum("nkp,ncp->nck", share, x.flatten(2))[..., None]
    query = blocks(x, "context.query.0", "context.query.1").flatten(2)
    key = blocks(regions, "context.key.0", "context.key.1")[..., 0]
    value = blocks(regions, "context.value")[..., 0]
    weight = (torch.einsum("ndp,ndk->npk", query, key) / query.shape[1] ** 0.5).softmax(-1)
    context = torch.einsum("npk,ndk->ndp", weight, value).unflatten(2, (height, width))
    joined = torch.cat([blocks(context, "context.expand"), x], 1)
    return last(blocks(joined, "context.fusion"), "classifier"), guess


@pytest.mark.parametrize("size", [(9, 13), (18, 26)])  # the second is that of output stride 32
def test_head_by_the_equations(size):
    model = randomised()
    *finer, c4, c5 = model.backbone.channels
    c4, c5 = torch.randn(2, c4, *size, dtype=torch.float64), torch.randn(2, c5, 9, 13, dtype=torch.float64)
    with torch.no_grad():
        outs = model.classifier([None] * len(finer) + [c4, c5])
        for out, expected in zip(outs, written_out(model.classifier, c4, c5), strict=True):
            assert (out - expected).norm() <= 1e-10 * expected.norm()


def test_whole_model():
    model, image = randomised(), torch.randn(1, 3, 64, 97, dtype=torch.float64)
    with torch.no_grad():
        *_, c4, c5 = model.backbone(image)
        expected, _ = written_out(model.classifier, c4, c5)
        expected = F.interpolate(expected, (64, 97), mode="bilinear", align_corners=True)
        assert (model(image) - expected).norm() <= 1e-10 * expected.norm()


def test_regions_of_a_certain_guess_are_means_of_classes():
    context = randomised().classifier.context
    seen = []
    context.key.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, labels = torch.randn(1, 16, 6, 7, dtype=torch.float64), torch.arange(42).view(1, 6, 7) % 3
    with torch.no_grad():
        context(x, 1000 * F.one_hot(labels, 3).movedim(3, 1).double())
    for k in range(3):
        mean = x[0, :, labels[0] == k].mean(1)
        assert (seen[0][0, :, k, 0] - mean).norm() <= 1e-10 * mean.norm()


def test_order_of_the_regions_does_not_matter():
    context = randomised().classifier.context
    x, logits = torch.randn(1, 16, 6, 7, dtype=torch.float64), torch.randn(1, 5, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        one, other = context(x, logits), context(x, logits[:, [3, 1, 4, 0, 2]])
        assert (one - other).norm() <= 1e-10 * one.norm()
        assert (one - context(x, 0 * logits)).norm() > 1e-3 * one.norm()


def test_loss_reaches_the_guess_through_both_maps():
    model = randomised().train()
    maps = model(torch.randn(2, 3, 65, 97, dtype=torch.float64))
    assert list(maps) == ["out", "aux"] and maps["aux"].shape == (2, 5, 65, 97)
    guess = model.classifier.guess[0].weight
    (through_regions,) = torch.autograd.grad(maps["out"].square().sum(), guess, retain_graph=True)
    assert through_regions.abs().sum() > 0
    target = torch.randint(5, (2, 65, 97))
    expected = F.cross_entropy(maps["out"], target) + 0.4 * F.cross_entropy(maps["aux"], target)
    assert (model.loss(maps, target) - expected).abs() <= 1e-10


def test_trunk_is_that_of_the_authors():
    with torch.device("meta"):
        model = OCRNet()
    trunk = model.backbone
    assert [trunk.layer3[0].conv2.dilation[0], trunk.layer3[1].conv2.dilation[0]] == [1, 2]
    assert [trunk.layer4[0].conv2.dilation[0], trunk.layer4[1].conv2.dilation[0]] == [2, 4]
    assert trunk.maxpool.ceil_mode


@pytest.mark.parametrize("named", ["num_classes", "channels", "key_channels", "output_stride"])
def test_bad_options(named):
    with pytest.raises(ValueError, match=named):
        OCRNet(**{**SMALL, named: 0})
