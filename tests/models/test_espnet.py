"""ESPNet: its block and its whole against the equations in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segops.models import ESPNet
from segops.models.espnet import ESP


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.uniform_(p, -0.5, 0.5)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return module.double().eval()


def same(out: torch.Tensor, expected: torch.Tensor) -> bool:
    return out.shape == expected.shape and bool((out - expected).norm() <= 1e-10 * expected.norm())


class Plain:
    """The layers of the released nets on the parameters of a model."""

    def __init__(self, model: torch.nn.Module):
        self.state = model.state_dict()

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        s = {
            key: self.state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        }
        return (x - s["running_mean"]) / (s["running_var"] + 1e-3).sqrt() * s["weight"] + s["bias"]

    def norm_act(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(f"{name}.0", x)
        return torch.where(x > 0, x, self.state[f"{name}.1.weight"][:, None, None] * x)

    def conv(self, name: str, x: torch.Tensor, **how) -> torch.Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], **how)

    def up(self, name: str, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, self.state[f"{name}.weight"], stride=2)[..., : like.shape[2], : like.shape[3]]

    def esp(self, name: str, x: torch.Tensor, stride: int = 1, add: bool = True) -> torch.Tensor:
        r = self.conv(f"{name}.reduce", x, stride=stride, padding=stride - 1)
        d1, d2, d4, d8, d16 = (self.conv(f"{name}.rates.{i}", r, padding=2**i, dilation=2**i) for i in range(5))
        out = torch.cat([d1, d2, d2 + d4, d2 + d4 + d8, d2 + d4 + d8 + d16], 1)
        return self.norm_act(f"{name}.act", out + x if add else out)


@pytest.mark.parametrize(("stride", "add"), [(1, True), (2, False)])
def test_block(stride, add):
    block = randomise(ESP(23, 23 if add else 13, stride=stride, residual=add))
    assert block.rates[0].out_channels == (7 if add else 5) and block.rates[1].out_channels == (4 if add else 2)
    x = torch.randn(2, 23, 19, 24).double()
    plain = Plain(torch.nn.ModuleDict({"b": block}))
    assert same(block(x), plain.esp("b", x, stride, add))


@pytest.mark.parametrize("size", [(64, 96), (65, 99)])
def test_whole(size):
    model = randomise(ESPNet(6, p=1, q=2))
    plain, image = Plain(model), torch.randn(1, 3, *size).double()
    b, c = "backbone.", "classifier."
    half = F.avg_pool2d(image, 3, 2, 1)
    x = plain.norm_act(b + "level1.1", plain.conv(b + "level1.0", image, stride=2, padding=1))
    c1 = plain.norm_act(b + "join1", torch.cat([x, half], 1))
    down = plain.esp(b + "down2", c1, 2, False)
    x = plain.esp(b + "level2.0", down)
    c2 = plain.norm_act(b + "join2", torch.cat([x, down, F.avg_pool2d(half, 3, 2, 1)], 1))
    down = plain.esp(b + "down3", c2, 2, False)
    x = plain.esp(b + "level3.1", plain.esp(b + "level3.0", down))
    c3 = plain.norm_act(b + "join3", torch.cat([down, x], 1))
    x = plain.up(c + "up3.1", plain.norm(c + "up3.0", plain.conv(c + "score3", c3)), c2)
    x = plain.norm_act(c + "merge2.0", torch.cat([plain.conv(c + "score2", c2), x], 1))
    x = plain.esp(c + "merge2.1", x, add=False)
    x = plain.norm_act(c + "up2.1", plain.up(c + "up2.0", x, c1))
    x = plain.norm_act(c + "merge1.1", plain.conv(c + "merge1.0", torch.cat([x, c1], 1), padding=1))
    with torch.no_grad():
        assert same(model(image), plain.up(c + "up1", x, image))


@pytest.mark.parametrize("num_classes", [1, 2, 4])
def test_few_classes(num_classes):
    model = ESPNet(num_classes, p=1, q=1)
    assert len(model.classifier.merge2[1].rates) == num_classes
    assert model(torch.randn(2, 3, 32, 32))["out"].shape == (2, num_classes, 32, 32)


def test_encoder_only():
    model = ESPNet(2, p=1, q=1, decoder=False).eval()
    image = torch.randn(1, 3, 65, 97)
    assert model.logits(image)["out"].shape == (1, 2, 9, 13) and model(image).shape == (1, 2, 65, 97)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"p": 0}, "p:"),
        ({"q": 0}, "q:"),
        ({"num_classes": 0, "decoder": False}, "num_classes"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(ValueError, match=named):
        ESPNet(**options)
