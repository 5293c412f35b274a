"""segops.nn.APNB and AFNB: the papers' sizes, wiring, initialisation and gradients."""

from __future__ import annotations

import pytest
import torch

import segops


def attended(block, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax over the pyramid, written out."""
    pooled = [
        torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, s).flatten(2) for s in block.sizes], 2)
        for x in (key, value)
    ]
    weights = torch.softmax(query.shape[1] ** -0.5 * query.flatten(2).mT @ pooled[0], 2)
    return (pooled[1] @ weights.mT).unflatten(2, query.shape[2:])


def trained(block: torch.nn.Module) -> torch.nn.Module:
    """With a last convolution that is no longer zero."""
    torch.nn.init.normal_(block.context.weight, 0, 0.3)
    torch.nn.init.normal_(block.context.bias, 0, 0.3)
    return block.double().eval()


def test_parameters_of_the_paper():
    assert sum(p.numel() for p in segops.nn.APNB(512).parameters()) == 920_576
    assert sum(p.numel() for p in segops.nn.AFNB(1024, 2048).parameters()) == 9_971_456


def test_wiring_of_apnb():
    block, x = trained(segops.nn.APNB(12, 6, 5)), torch.randn(2, 12, 13, 9, dtype=torch.float64)
    key = block.key(x)
    context = block.context(attended(block, key, key, block.value(x)))
    torch.testing.assert_close(block(x), block.fuse(torch.cat([context, x], 1)))
    assert (block(x) >= 0).all()  # a ReLU comes last


def test_wiring_of_afnb():
    block = trained(segops.nn.AFNB(7, 12, 6, 5, sizes=(1, 2)))
    low, high = torch.randn(2, 7, 17, 11, dtype=torch.float64), torch.randn(2, 12, 9, 6, dtype=torch.float64)
    context = block.context(attended(block, block.query(high), block.key(low), block.value(low)))
    torch.testing.assert_close(block(low, high), block.fuse(torch.cat([context, high], 1)))
    assert (block(low, high) < 0).any()  # no ReLU does


def test_starts_without_context_and_learns_it():
    """The last convolution is zero: nothing before it has a gradient in the first step, and it has one."""
    block, x = segops.nn.APNB(8, 4, 4), torch.randn(2, 8, 9, 9)
    block(x).square().sum().backward()
    assert not block.context(torch.randn(2, 4, 9, 9)).any()
    assert block.context.weight.grad.any() and not block.value.weight.grad.any()
    with torch.no_grad():
        block.context.weight -= block.context.weight.grad
    block(x).square().sum().backward()
    assert block.value.weight.grad.any() and block.key[0].weight.grad.any()


def test_autocast_and_compile():
    block, x = segops.nn.APNB(8, 4, 4).eval(), torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block(x).float(), block.float()(x).float(), rtol=0.05, atol=0.05)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(block, fullgraph=True)(x), block(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: segops.nn.APNB(0), ValueError, "channels: expected at least 1, got 0"),
        (lambda: segops.nn.AFNB(4, 8, key_channels=0), ValueError, "key_channels: expected at least 1, got 0"),
        (lambda: segops.nn.AFNB(4, 8, 2.5), TypeError, "key_channels: expected an integer, got float"),
        (lambda: segops.nn.APNB(4, sizes=(0,)), ValueError, r"sizes\[0\]: expected at least 1, got 0"),
        (lambda: segops.nn.APNB(4, dropout=2), ValueError, "dropout: expected a number from 0 to 1, got 2"),
        (lambda: segops.nn.APNB(4, 2, 2)(torch.rand(1, 3, 5, 5)), ValueError, "x: expected 4 channels"),
        (lambda: segops.nn.AFNB(4, 8, 2, 2)(torch.rand(4, 5, 5), None), ValueError, "low: expected 4 dimensions"),
        (
            lambda: segops.nn.AFNB(4, 8, 2, 2)(torch.rand(1, 4, 5, 5), torch.rand(1, 4, 5, 5)),
            ValueError,
            "high: expected 8 channels",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
