"""segops.nn.Encoding: published initialisation, learning, bad input."""

from __future__ import annotations

import pytest
import torch

import segops


def test_published_initialisation():
    layer = segops.nn.Encoding(64, 32)
    assert layer.codewords.shape == (32, 64) and layer.scale.shape == (32,)
    assert layer.codewords.abs().max() <= (32 * 64) ** -0.5 and layer.codewords.std() > 0.5 * (32 * 64) ** -0.5
    assert ((layer.scale > -1) & (layer.scale < 0)).all()


def test_everything_learns():
    layer, x = segops.nn.Encoding(6, 4), torch.randn(2, 6, 5, 5, requires_grad=True)
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (x, *layer.parameters()))


@pytest.mark.parametrize("options", [{"channels": 0}, {"channels": 3, "num_codes": 0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        segops.nn.Encoding(**options)
