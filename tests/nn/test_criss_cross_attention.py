"""segops.nn.CrissCrossAttention: the published module's answers, identity at first, what two passes see, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segops.nn import CrissCrossAttention

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "criss_cross.npz")
CONVOLUTIONS = ("query_conv", "key_conv", "value_conv")


def array(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[f"mod_{name}"])


def published() -> CrissCrossAttention:
    layer = CrissCrossAttention(16)
    state = {f"{c}.{kind}": array(f"{c}_{kind[0]}") for c in CONVOLUTIONS for kind in ("weight", "bias")}
    layer.load_state_dict({**state, "gamma": array("gamma").reshape(1)})
    return layer


def test_golden():
    layer, x = published(), array("x").requires_grad_()
    out = layer(x)
    out.backward(array("gout"))
    pairs = {"out_R2": out, "dx_R2": x.grad, "dgamma": layer.gamma.grad}
    for name in CONVOLUTIONS:
        pairs |= {f"{name}_dw": getattr(layer, name).weight.grad, f"{name}_db": getattr(layer, name).bias.grad}
    for name, actual in pairs.items():
        # The bias of the keys shifts all energies of a softmax alike: its gradient is 0, and theirs is rounding.
        scale = float(array("query_conv_db" if name == "key_conv_db" else name).abs().max())
        torch.testing.assert_close(actual, array(name), rtol=1e-5, atol=4e-6 * scale, msg=name)


def test_is_the_identity_at_first():
    x = torch.randn(2, 16, 5, 7)
    layer = CrissCrossAttention(16)
    assert torch.equal(layer(x), x)
    layer(x).sum().backward()
    assert layer.gamma.grad.abs() > 0  # or it could never leave


@pytest.mark.parametrize(("recurrence", "seen"), [(1, 6 + 7 - 1), (2, 6 * 7), (3, 6 * 7)])
def test_what_a_pixel_sees(recurrence, seen):
    layer = CrissCrossAttention(8, recurrence=recurrence).double()
    torch.nn.init.ones_(layer.gamma)
    x = torch.randn(1, 8, 6, 7, dtype=torch.float64, requires_grad=True)
    layer(x)[0, :, 2, 3].sum().backward()
    assert int((x.grad.abs().sum(1) > 0).sum()) == seen


def test_state_dict_has_the_published_names():
    expected = {f"{c}.{kind}" for c in CONVOLUTIONS for kind in ("weight", "bias")} | {"gamma"}
    layer = CrissCrossAttention(32, reduction=4)
    assert set(layer.state_dict()) == expected
    assert layer.query_conv.weight.shape == layer.key_conv.weight.shape == (8, 32, 1, 1)
    assert repr(layer).startswith("CrissCrossAttention(\n  32, recurrence=2, reduction=4")


def test_moves_and_converts():
    x = torch.randn(1, 16, 5, 4)
    layer = published().bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        out = published()(x)
    torch.testing.assert_close(out, published()(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 8.0}, TypeError, "in_channels: expected an integer, got float"),
        ({"in_channels": 4}, ValueError, "reduction: expected 1 to in_channels = 4, got 8"),
        ({"in_channels": 4, "reduction": 0}, ValueError, "reduction: expected 1 to in_channels = 4, got 0"),
        ({"in_channels": 8, "recurrence": 0}, ValueError, "recurrence: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CrissCrossAttention(**arguments)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: expected 16 channels, got shape \(1, 8, 5, 5\)"):
        CrissCrossAttention(16)(torch.rand(1, 8, 5, 5))
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions \(N, C, H, W\)"):
        CrissCrossAttention(16)(torch.rand(16, 5, 5))
