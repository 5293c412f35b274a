"""segops.nn: AtrousConv2d, AtrousSeparableConv2d, ASPP and accelerate against plain torch modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import segops


def gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x, *module.parameters()]
    return [module(x).detach(), *torch.autograd.grad(module(x).square().sum(), leaves)]


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 6, "dilation": 6},
        {"padding": "same", "dilation": 3, "groups": 2},
        {"padding": "valid", "dilation": (2, 3), "bias": False},
        {"padding": 2, "dilation": 2, "padding_mode": "reflect"},
        {"padding": 1, "stride": 2},
    ],
)
def test_is_a_conv2d(options):
    plain = nn.Conv2d(4, 6, 3, dtype=torch.float64, **options)
    ours = segops.nn.AtrousConv2d(4, 6, 3, dtype=torch.float64, **options)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 11, 13, dtype=torch.float64, requires_grad=True)
    for a, b in zip(gradients(ours, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours(x[0]), plain(x[0]), rtol=1e-10, atol=1e-10)


def test_separable():
    layer = segops.nn.AtrousSeparableConv2d(4, 6, dilation=5, bias=True)
    x = torch.randn(2, 4, 9, 9)
    spread = nn.functional.conv2d(x, layer.depthwise.weight, padding=5, dilation=5, groups=4)
    expected = nn.functional.conv2d(spread, layer.pointwise.weight, layer.pointwise.bias)
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ValueError, match="kernel_size: expected an odd integer >= 1, got 4"):
        segops.nn.AtrousSeparableConv2d(4, 6, 4)


def plain_aspp(head: segops.nn.ASPP, x: torch.Tensor) -> torch.Tensor:
    """As torchvision writes it."""
    *convs, pooling = head.convs
    pooled = nn.functional.interpolate(pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return head.project(torch.cat([*(conv(x) for conv in convs), pooled], 1))


def test_aspp():
    head = segops.nn.ASPP(5, (2, 6), out_channels=4, dropout=0.0).double()
    assert {k for k in head.state_dict() if k.endswith("0.weight") or "convs.3.1" in k} == {
        *(f"convs.{i}.0.weight" for i in range(3)), "convs.3.1.weight", "project.0.weight"
    }  # fmt: skip
    x = torch.randn(2, 5, 9, 7, dtype=torch.float64, requires_grad=True)
    other = copy.deepcopy(head)
    leaves, others = [x, *head.parameters()], [x, *other.parameters()]
    a, b = head(x), plain_aspp(other, x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    pairs = zip(
        torch.autograd.grad(a.square().sum(), leaves), torch.autograd.grad(b.square().sum(), others), strict=True
    )
    for p, q in pairs:
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"rates\[1\]: expected at least 1, got 0"):
        segops.nn.ASPP(5, (2, 0))


class Model(nn.Module):
    """A small trunk with holes, a head with holes, and a layer that only looks like a convolution."""

    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.trunk = nn.Sequential(nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=4, dilation=4, groups=8)
        self.scaled = self.Scaled(8, 8, 3, padding=2, dilation=2)
        self.head = nn.ModuleList(nn.Conv2d(8, 5, 3, padding=r, dilation=r) for r in (6, 12))

    def forward(self, x):
        x = self.scaled(self.depthwise(self.trunk(self.stem(x))))
        return sum(conv(x) for conv in self.head)


def test_accelerate_swaps_in_place():
    model, x = Model(), torch.randn(2, 3, 33, 41)
    before, state, parameters = gradients(model, x.requires_grad_()), model.state_dict(), list(model.parameters())
    seen = []
    model.head[0].register_forward_hook(lambda *_: seen.append(1))
    report = segops.accelerate(model)
    assert list(report.swapped) == ["trunk.0", "depthwise", "head.0", "head.1"]
    assert report.kept == {"stem": "dilation 1", "scaled": "Scaled may compute something else than Conv2d"}
    assert str(report).splitlines()[:3] == [
        "4 of 6 convolutions are segops.nn.AtrousConv2d now",
        "  trunk.0: 8 -> 8, 3 x 3, dilation 2",
        "  depthwise: 8 -> 8, 3 x 3, dilation 4, 8 groups",
    ]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    for a, b in zip(gradients(model, x), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert seen
    again = segops.accelerate(model)
    assert not again.swapped and again.kept["head.1"] == "a segops.nn.AtrousConv2d already"


def test_accelerate_takes_modules_only():
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        segops.accelerate("model")
