"""segops.nn.NonLocal: the published module's answers in every mode, identity at first, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segops.nn import NonLocal

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "nonlocal_attention.npz")
MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


def published(mode: str, sub_sample: bool) -> NonLocal:
    """mmcv's weights by mmcv's names."""
    layer = NonLocal(6, reduction=1 if mode == "gaussian" else 2, mode=mode, sub_sample=sub_sample)
    prefix = f"mod_{mode}{'_sub' * sub_sample}__"
    state = {
        name.removeprefix(prefix).replace(".0.conv", "").replace(".conv", ""): torch.from_numpy(GOLDEN[name])
        for name in GOLDEN
        if name.startswith(prefix)
    }
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("sub_sample", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_golden(mode, sub_sample):
    layer, x = published(mode, sub_sample), torch.from_numpy(GOLDEN["mod_x"]).requires_grad_()
    out = layer(x)
    name = f"mod_{mode}{'_sub' * sub_sample}"
    torch.testing.assert_close(out, torch.from_numpy(GOLDEN[f"{name}_out"]), rtol=1e-5, atol=1e-5)
    if mode != "concatenation":  # whose published code has no gradient
        out.backward(torch.from_numpy(GOLDEN["mod_gout"]))
        torch.testing.assert_close(x.grad, torch.from_numpy(GOLDEN[f"{name}_dx"]), rtol=1e-5, atol=1e-5)


def test_concatenation_has_gradients():
    layer, x = published("concatenation", True).double(), torch.from_numpy(GOLDEN["mod_x"]).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)


@pytest.mark.parametrize("norm_layer", [None, torch.nn.BatchNorm2d])
@pytest.mark.parametrize("mode", MODES)
def test_is_the_identity_at_first(mode, norm_layer):
    x = torch.randn(2, 8, 5, 7)
    layer = NonLocal(8, mode=mode, norm_layer=norm_layer)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    last = layer.conv_out if norm_layer is None else layer.norm
    assert last.weight.grad.abs().max() > 0  # or it could never leave


def test_scale_is_for_one_mode():
    x = torch.randn(1, 8, 5, 7)
    for mode in MODES[:3]:
        outs = []
        for use_scale in (True, False):
            layer = NonLocal(8, mode=mode, use_scale=use_scale)
            for i, p in enumerate(layer.parameters()):
                torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
            outs.append(layer(x))
        assert torch.equal(*outs) == (mode != "embedded_gaussian")


def test_state_dict_has_the_published_names():
    names = {"g", "conv_out", "theta", "phi"}
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert set(NonLocal(32).state_dict()) == expected
    assert set(NonLocal(32, mode="concatenation").state_dict()) == expected | {"concat_project.weight"}
    assert {name.split(".")[0] for name in NonLocal(32, mode="gaussian").state_dict()} == {"g", "conv_out"}
    assert NonLocal(32, reduction=4).theta.weight.shape == (8, 32, 1, 1)


@pytest.mark.parametrize("mode", MODES)
def test_moves_and_converts(mode):
    x = torch.from_numpy(GOLDEN["mod_x"])
    layer = published(mode, False)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), expected, rtol=0.05, atol=0.1, check_dtype=False)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 8.0}, TypeError, "in_channels: expected an integer, got float"),
        ({"in_channels": 1}, ValueError, "reduction: expected 1 to in_channels = 1, got 2"),
        ({"in_channels": 8, "reduction": 0}, ValueError, "reduction: expected 1 to in_channels = 8, got 0"),
        ({"in_channels": 8, "mode": "dot"}, ValueError, "mode: expected one of .*, got 'dot'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        NonLocal(**arguments)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: expected 16 channels .*, got shape \(1, 8, 5, 5\)"):
        NonLocal(16)(torch.rand(1, 8, 5, 5))
    with pytest.raises(ValueError, match=r"x: expected 16 channels and at least 2 x 2 pixels, got shape"):
        NonLocal(16, sub_sample=True)(torch.rand(1, 16, 1, 5))
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions \(N, C, H, W\)"):
        NonLocal(16)(torch.rand(16, 5, 5))
