"""segops.topk_uncertain_grid: golden cases, order and ties, NaN and infinities, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference.topk_uncertain_grid import topk_uncertain_grid as oracle

segops.ops  # noqa: B018  registers the operators
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "uncertain_points.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def test_golden():
    uncertainty = golden("grid_map")
    logits = uncertainty - uncertainty.max() - 1  # below 0, -|logit| is the logit
    indices, points = segops.topk_uncertain_grid(logits, 10)
    assert torch.equal(indices, golden("grid_idx"))
    torch.testing.assert_close(points, golden("grid_coords"), rtol=0, atol=1e-6)


def test_golden_with_more_points_than_cells():
    logits = golden("grid_map") - golden("grid_map").max() - 1
    indices, points = segops.topk_uncertain_grid(logits, 1000)
    assert torch.equal(indices, golden("grid_all_idx"))
    assert points.shape == (2, 54, 2)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    height=st.integers(1, 90),
    width=st.integers(1, 130),
    share=st.floats(0, 1),
    levels=st.sampled_from([1, 3, 50, 10**6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    threads=st.sampled_from([1, 2, 5]),
)
def test_any_sizes_agree_with_the_definition(batch, channels, height, width, share, levels, dtype, threads):
    """With few levels nearly all margins tie, and the lower index goes first."""
    g = torch.Generator().manual_seed(height * width)
    logits = torch.randint(-levels, levels + 1, (batch, channels, height, width), generator=g).to(dtype) / 64
    k = int(share * height * width)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        indices, points = segops.topk_uncertain_grid(logits, k)
    finally:
        torch.set_num_threads(before)
    expected = oracle(logits, k)
    assert torch.equal(indices, expected[0])
    assert torch.equal(points, expected[1])


@pytest.mark.parametrize("falling", [False, True])
def test_margins_in_the_worst_order(falling):
    """Margins that fall from cell to cell all become candidates; those that rise, none after the first."""
    logits = torch.arange(1.0, 300 * 400 + 1).view(1, 1, 300, 400)
    indices, _ = segops.topk_uncertain_grid(logits.flip(2, 3) if falling else logits, 100)
    expected = torch.arange(100)
    assert torch.equal(indices[0], 300 * 400 - 1 - expected if falling else expected)


def test_equal_cells_come_in_the_order_of_their_indices():
    indices, _ = segops.topk_uncertain_grid(torch.zeros(2, 3, 150, 150), 7000)
    assert torch.equal(indices, torch.arange(7000).expand(2, -1))


@pytest.mark.parametrize("channels", [2, 3, 19])
def test_cells_without_a_margin_are_least_uncertain(channels):
    logits = torch.randn(1, channels, 5, 21)
    cells = logits.view(channels, -1)
    cells[0, 3] = math.nan
    cells[-1, 50] = math.nan
    cells[:, 70] = -math.inf
    cells[:2, 104] = math.inf
    cells[0, 20] = math.inf  # against finite ones: an infinite margin, as good as none
    cells[0, 40], cells[1, 40] = -0.0, 0.0
    cells[2:, 40] = -math.inf  # forbidden classes do not count
    indices, _ = segops.topk_uncertain_grid(logits, 105)
    assert indices[0, 0] == 40
    assert indices[0, -5:].tolist() == [3, 20, 50, 70, 104]


def test_a_mask_without_a_margin_is_least_uncertain():
    logits = torch.tensor([math.nan, -0.0, -2.0, math.inf, 0.0, -math.inf, 1.0]).view(1, 1, 1, 7)
    assert segops.topk_uncertain_grid(logits, 7)[0][0].tolist() == [1, 4, 6, 2, 0, 3, 5]


def test_everything_nan():
    indices, points = segops.topk_uncertain_grid(torch.full((1, 3, 4, 4), math.nan), 5)
    assert indices.tolist() == [[0, 1, 2, 3, 4]]
    assert torch.isfinite(points).all()


def test_huge_logits():
    logits = torch.full((1, 2, 2, 2), torch.finfo(torch.float32).max)
    logits[0, 1, 0] *= -1  # their margin overflows
    assert segops.topk_uncertain_grid(logits, 4)[0].tolist() == [[2, 3, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    logits = torch.randn(2, 4, 6, 7).to(dtype)
    indices, points = segops.topk_uncertain_grid(logits, 9)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = oracle(logits.to(wide), 9)
    assert indices.dtype == torch.int64
    assert points.dtype == wide
    assert torch.equal(indices, expected[0])
    assert torch.equal(points, expected[1])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.mT.contiguous().mT,
        lambda x: x[:, :, ::2, 1:],
        lambda x: x[:, :1].expand(-1, 3, -1, -1),
    ],
)
def test_layouts(view):
    logits = view(torch.randn(2, 5, 12, 11))
    actual, expected = segops.topk_uncertain_grid(logits, 17), segops.topk_uncertain_grid(logits.clone(), 17)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def test_results_carry_no_gradient():
    indices, points = segops.topk_uncertain_grid(torch.randn(1, 3, 4, 5, requires_grad=True), 3)
    assert not indices.requires_grad
    assert not points.requires_grad


def test_shapes_without_tensors_behind_them():
    indices, points = segops.topk_uncertain_grid(torch.empty(2, 3, 4, 5, device="meta"), 6)
    assert (indices.shape, indices.dtype) == ((2, 6), torch.int64)
    assert (points.shape, points.dtype) == ((2, 6, 2), torch.float32)


@pytest.mark.parametrize(
    ("logits", "k", "error", "message"),
    [
        (torch.rand(3, 4, 5), 1, ValueError, r"logits: expected 4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
        (torch.rand(1, 0, 4, 5), 1, ValueError, r"logits: expected at least one channel, row and column, got shape"),
        (torch.rand(1, 2, 0, 5), 1, ValueError, r"logits: expected at least one channel, row and column, got shape"),
        (torch.rand(1, 2, 4, 5), -1, ValueError, "k: expected an integer >= 0, got -1"),
        (torch.rand(1, 2, 4, 5), 1.5, TypeError, "k: expected an integer, got float"),
        (torch.ones(1, 2, 4, 5, dtype=torch.int64), 1, TypeError, "logits: expected float64, .* got torch.int64"),
        (np.ones((1, 2, 4, 5)), 1, TypeError, r"logits: expected a tensor \(N, C, H, W\), got ndarray"),
    ],
)
def test_bad_arguments(logits, k, error, message):
    with pytest.raises(error, match=message):
        segops.topk_uncertain_grid(logits, k)


def test_the_operator_guards_its_memory():
    with pytest.raises(RuntimeError, match="k from 0 to H W"):
        torch.ops.segops.topk_uncertain_grid(torch.rand(1, 2, 3, 3), 10)
