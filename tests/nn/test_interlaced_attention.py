"""segops.nn.InterlacedAttention: the published head's answers by its permuted copies, counts, padding, bad input."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from segops.nn import InterlacedAttention


def published(layer: InterlacedAttention, x: torch.Tensor) -> torch.Tensor:
    """The module as its authors have it: groups are copied to a batch of small maps, and each of these is projected."""
    (n, c, height, width), (rows, columns) = x.shape, layer.down_factor
    down, across = -(-height // rows), -(-width // columns)
    top, left = (down * rows - height) // 2, (across * columns - width) // 2
    y = pad(x, (left, across * columns - width - left, top, down * rows - height - top))

    def attention(relation, maps):
        query, key, value = (f(maps).flatten(2) for f in (relation.query, relation.key, relation.value))
        weights = (query.shape[1] ** -0.5 * query.mT @ key).softmax(-1)
        return relation.output((value @ weights.mT).view(maps.shape))

    y = y.view(n, c, down, rows, across, columns).permute(0, 3, 5, 1, 2, 4).reshape(-1, c, down, across)
    y = attention(layer.global_relation, y).view(n, rows, columns, c, down, across)
    y = y.permute(0, 4, 5, 3, 1, 2).reshape(-1, c, rows, columns)
    y = attention(layer.local_relation, y).view(n, down, across, c, rows, columns)
    y = y.permute(0, 3, 1, 4, 2, 5).reshape(n, c, down * rows, across * columns)
    return layer.join(torch.cat([x, y[:, :, top : top + height, left : left + width]], 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("size", "factor"), [((8, 12), 4), ((9, 11), (4, 3)), ((5, 17), 8)])
def test_equals_the_published_head(size, factor, training):
    torch.manual_seed(0)
    layer = InterlacedAttention(12, 5, down_factor=factor, dropout=0).double().train(training)
    for norm in layer.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # so that the padding is no zero after the projections
            torch.nn.init.normal_(norm.bias)
            torch.nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 12, *size, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    expected, out = published(layer, x), layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_published_counts():
    layer = InterlacedAttention(512)
    assert sum(p.numel() for p in layer.parameters()) == 2_366_464
    assert sum(p.numel() for p in layer.global_relation.parameters()) == 920_576


def test_padding_takes_part_unless_masked():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 7, 9)
    faithful = InterlacedAttention(6, down_factor=4).eval()
    masked = InterlacedAttention(6, down_factor=4, mask_padding=True).eval()
    masked.load_state_dict(faithful.state_dict())
    assert not torch.allclose(faithful(x), masked(x))
    whole = torch.randn(1, 6, 8, 12)
    torch.testing.assert_close(faithful(whole), masked(whole))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_every_pixel_sees_every_other(mask_padding):
    torch.manual_seed(1)
    layer = InterlacedAttention(8, down_factor=3, mask_padding=mask_padding).double().eval()
    x = torch.randn(1, 8, 7, 8, dtype=torch.float64, requires_grad=True)
    layer(x)[0, :, 2, 3].sum().backward()
    assert int((x.grad.abs().sum(1) > 0).sum()) == 7 * 8


def test_everything_learns():
    layer = InterlacedAttention(8, down_factor=4)
    layer(torch.randn(2, 8, 9, 10)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_moves_and_converts():
    layer, x = InterlacedAttention(16, down_factor=4).eval(), torch.randn(1, 16, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out.float(), layer(x), rtol=0.1, atol=0.1)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert "relation='global', down_factor=(4, 4)" in repr(layer)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"channels": 8.0}, TypeError, "channels: expected an integer, got float"),
        ({"channels": 0}, ValueError, "channels: expected at least 1, got 0"),
        ({"channels": 8, "key_channels": 0}, ValueError, "key_channels: expected at least 1, got 0"),
        ({"channels": 8, "down_factor": 0}, ValueError, "down_factor: expected integers >= 1, got 0"),
        ({"channels": 8, "dropout": 1.5}, ValueError, "dropout: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        InterlacedAttention(**arguments)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x: expected 16 channels, got shape \(1, 8, 5, 5\)"):
        InterlacedAttention(16)(torch.rand(1, 8, 5, 5))
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions \(N, C, H, W\)"):
        InterlacedAttention(16)(torch.rand(16, 5, 5))
