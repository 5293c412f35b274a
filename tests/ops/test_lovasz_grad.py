"""segops.lovasz_grad: the published algorithm, exactness where that is not exact, edge cases, bad input."""

from __future__ import annotations

import golden_crf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segops

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("lovasz").items()}


def algorithm_1(foreground: torch.Tensor) -> torch.Tensor:
    """Neighbouring values of the Jaccard loss subtracted, as the paper and its code do."""
    total = foreground.sum()
    jaccard = 1 - (total - foreground.cumsum(0)) / (total + (1 - foreground).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


@pytest.mark.parametrize(("given", "expected"), [("lg_gt_sorted", "lg_out")])
def test_golden(given, expected):
    torch.testing.assert_close(segops.lovasz_grad(GOLDEN[given]), GOLDEN[expected], rtol=1e-5, atol=2e-7)
    assert torch.equal(segops.lovasz_grad(torch.zeros(5)), GOLDEN["lg_allzero_out"])
    assert torch.equal(segops.lovasz_grad(torch.ones(1)), GOLDEN["lg_one"])


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_is_algorithm_1_in_exact_arithmetic(foreground):
    x = torch.tensor(foreground, dtype=torch.float64)
    torch.testing.assert_close(segops.lovasz_grad(x), algorithm_1(x), rtol=1e-9, atol=1e-12)
    assert abs(segops.lovasz_grad(x).sum() - 1) <= 1e-12


def test_float32_keeps_what_differences_lose():
    x = (torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    exact = algorithm_1(x.double())
    ours, published = segops.lovasz_grad(x), algorithm_1(x)
    assert (ours - exact).norm() <= 1e-6 * exact.norm()
    needed = segops.lovasz_grad(x.double()) != 0
    assert (ours[needed] != 0).all()
    assert (published[needed] == 0).float().mean() > 0.2  # which is why
    assert (published - exact).norm() > 1e-4 * exact.norm()


def test_more_elements_than_float32_counts():
    x = torch.zeros(2**24 + 9)
    x[-1], x[1] = 1, 1
    out = segops.lovasz_grad(x)
    background = 2**24 + 7
    assert out[0] == 1 / 3 and out[1] == 1 / 3  # 2 / (2 * 3), then 1 / (2 + 1)
    assert abs(out[-1].double() * (2 + background) - 1) <= 1e-6
    assert abs(out.double().sum() - 1) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype):
    x = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]])
    out = segops.lovasz_grad(x.to(dtype))
    assert out.dtype == (dtype if dtype.is_floating_point else torch.float32)
    torch.testing.assert_close(out.float(), segops.lovasz_grad(x.float()), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty(shape):
    assert segops.lovasz_grad(torch.zeros(shape)).shape == shape


def test_any_layout_and_leading_dimensions():
    x = (torch.rand(3, 4, 50) < 0.4).float()
    expected = torch.stack([segops.lovasz_grad(row) for row in x.view(12, 50)]).view(3, 4, 50)
    assert torch.equal(segops.lovasz_grad(x.mT.contiguous().mT), expected)
    assert torch.equal(segops.lovasz_grad(x[:1, :1].expand(2, 3, 50))[1, 2], expected[0, 0])


@pytest.mark.parametrize("bad", [0.5, -1.0, 2.0, torch.nan, torch.inf])
def test_other_values(bad):
    with pytest.raises(ValueError, match="^sorted_foreground: expected zeros and ones, got other values$"):
        segops.lovasz_grad(torch.tensor([1.0, 0.0, bad]))


def test_bad_input():
    with pytest.raises(TypeError, match="^sorted_foreground: expected a tensor"):
        segops.lovasz_grad([1, 0])
    with pytest.raises(TypeError, match="^sorted_foreground: expected real numbers"):
        segops.lovasz_grad(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="^sorted_foreground: expected shape"):
        segops.lovasz_grad(torch.tensor(1.0))
    with pytest.raises(TypeError, match="^sorted_foreground: expected a dense tensor"):
        segops.lovasz_grad(torch.ones(3).to_sparse())
