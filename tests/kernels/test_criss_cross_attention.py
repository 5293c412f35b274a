"""What is special to criss-cross attention's GPU kernels: lines of several tiles, layouts, sums that go on in rows."""

from __future__ import annotations

import pytest
import torch

import segops
from segops.reference.criss_cross_attention import energies
from segops.testing import assert_gradients_match

pytest.importorskip("triton")

from segops.kernels.channels_last import last

SIZES = {  # dims, channels, height, width
    "tall": (5, 20, 66, 2),
    "wide": (5, 20, 2, 66),
    "row": (3, 40, 1, 66),
    "column": (17, 3, 66, 1),
    "blocks_of_channels": (40, 300, 3, 5),
    "aligned": (16, 32, 4, 16),
}


def inputs(dims, channels, height, width, dtype=torch.float32, n=1):
    query, key = torch.randn(2, n, dims, height, width, dtype=dtype)
    return query, key, torch.randn(n, channels, height, width, dtype=dtype)


def with_gradients(tensors, grad, backend):
    leaves = [x.detach().requires_grad_() for x in tensors]
    with segops.backend(backend):
        out = segops.criss_cross_attention(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def assert_right(tensors, eps):
    grad = torch.randn(tensors[2].shape, dtype=tensors[2].dtype)
    expected = with_gradients([x.double() for x in tensors], grad, "reference")
    for a, b, name in zip(with_gradients(tensors, grad, "triton"), expected, ("out", *"qkv"), strict=True):
        assert a.is_contiguous()
        assert a.dtype == tensors[0].dtype
        assert_gradients_match(a, b, eps, name)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_lines_of_any_number_of_tiles(sizes):
    assert_right(inputs(*sizes), 1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat([x, x], 3)[..., 1 : 1 + x.shape[3]],
        lambda x: x[:, :1].expand_as(x),
        lambda x: x[:1].expand_as(x),
    ],
    ids=["channels_last", "transposed", "sliced", "one_channel", "one_image"],
)
@pytest.mark.parametrize("channels", [5, 16])
def test_any_layout(layout, channels):
    assert_right([layout(x) for x in inputs(channels, channels, 3, 5, n=2)], 1e-5)


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1), (2, 66)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_sums(size, dtype):
    query, key, value = inputs(7, 3, *size, dtype)
    with segops.backend("triton"):
        lse = torch.ops.segops.criss_cross_attention(query, key, value)[1]
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(lse, energies(query.double(), key.double()).logsumexp(-1).to(lse.dtype))


@pytest.mark.parametrize("factor", [1e2, -1e2, 1e4, -1e4])
def test_huge_energies(factor):
    """The softmax becomes a maximum, whether the largest energy lies in the row or in the column."""
    query, key, value = inputs(2, 5, 4, 6)
    tensors = [factor * query.sign(), key.abs() + 1, value]
    grad = torch.ones_like(value)
    expected = with_gradients([x.double() for x in tensors], grad, "reference")
    actual = with_gradients(tensors, grad, "triton")
    assert all(x.isfinite().all() for x in actual)
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's NumPy
def test_not_a_number_stays_with_those_who_see_it():
    query, key, value = inputs(3, 4, 3, 4, n=2)
    key[0, 1, 2, 3] = torch.nan
    with segops.backend("triton"):
        out = segops.criss_cross_attention(query, key, value)
    seen = torch.zeros(3, 4, dtype=torch.bool)
    seen[2], seen[:, 3] = True, True
    assert torch.equal(out[0].isnan().all(0), seen)
    assert torch.equal(out[0].isnan().any(0), seen)
    assert out[1].isfinite().all()


def test_one_key_has_all_the_weight():
    query, key, value = inputs(3, 141, 1, 1)
    grad = torch.randn_like(value)
    out, *gradients = with_gradients([query, key, value], grad, "triton")
    torch.testing.assert_close(out, value)
    torch.testing.assert_close(gradients[2], grad)
    for x in gradients[:2]:  # products and sums of 141 channels that cancel
        torch.testing.assert_close(x, torch.zeros_like(x), rtol=0, atol=1e-4)


def test_copies_with_channels_side_by_side():
    x = torch.randn(2, 5, 3, 4)
    copied = last(x)
    assert copied.shape == (2, 3, 4, 16)
    assert torch.equal(copied[..., :5], x.movedim(1, 3))
    assert not copied[..., 5:].any()
    whole = torch.randn(2, 32, 3, 4)
    assert torch.equal(last(whole), whole.movedim(1, 3))
    assert last(whole).is_contiguous()
    there = whole.contiguous(memory_format=torch.channels_last)
    assert last(there).data_ptr() == there.data_ptr()  # nothing to copy
