"""segops.uncertain_points: golden cases, the two draws, order and ties, NaN and infinities, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference.topk_uncertain_grid import margin
from segops.reference.uncertain_points import uncertain_points as oracle

segops.ops  # noqa: B018  registers the operators
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "uncertain_points.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def choose(*args):
    return torch.ops.segops.uncertain_points(*args)


def margins_at(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """In float64, of all points (N, P, 2)."""
    grid = 2 * points.double()[:, :, None] - 1
    return margin(F.grid_sample(logits.double(), grid, align_corners=False)[..., 0])


@pytest.mark.parametrize(("case", "coords", "important"), [("unc", "unc_sem_coords", 18), ("uncI", "uncI_coords", 7)])
def test_golden(case, coords, important):
    draws = golden(f"{case}_over_points"), golden(f"{case}_random_points")
    points = choose(golden(f"{case}_logits"), *draws, important)
    torch.testing.assert_close(points, golden(coords), rtol=0, atol=0)


def test_draws_come_in_the_peers_order_from_the_generator():
    logits = torch.randn(2, 5, 12, 9)
    points = segops.uncertain_points(
        logits, 21, oversample_ratio=2.5, importance_sample_ratio=0.6, generator=torch.Generator().manual_seed(3)
    )
    g = torch.Generator().manual_seed(3)
    candidates, others = torch.rand(2, 52, 2, generator=g), torch.rand(2, 9, 2, generator=g)
    assert torch.equal(points, oracle(logits, candidates, others, 12))


def test_the_default_generator_is_torchs():
    logits = torch.randn(1, 5, 12, 9)
    torch.manual_seed(5)
    first = segops.uncertain_points(logits, 20)
    second = segops.uncertain_points(logits, 20)
    torch.manual_seed(5)
    assert torch.equal(segops.uncertain_points(logits, 20), first)
    assert not torch.equal(first, second)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    drawn=st.integers(1, 700),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
)
def test_any_sizes_agree_with_the_definition(batch, channels, height, width, drawn, share, dtype, last, threads):
    """Logits and points with few bits, so that sums are exact and many margins tie."""
    g = torch.Generator().manual_seed(drawn)
    logits = torch.randint(-9, 10, (batch, channels, height, width), generator=g).to(dtype)
    candidates, others = (torch.randint(-3, 36, (batch, n, 2), generator=g).to(dtype) / 32 for n in (drawn, 4))
    important = int(share * drawn)
    if last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        points = choose(logits, candidates, others, important)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(points, oracle(logits, candidates, others, important))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 19])
def test_arbitrary_numbers_agree_up_to_rounding(channels, last):
    """Rounding swaps points whose margins are close: of the order in float64, as much as in eager PyTorch is lost."""
    logits, candidates = torch.randn(3, channels, 50, 37), torch.rand(3, 20000, 2)
    if last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    best = margins_at(logits, candidates).sort(1).values[:, :9000]
    args = logits, candidates, candidates[:, :0], 9000
    actual, eager = ((margins_at(logits, f(*args)) - best).norm() for f in (choose, oracle))
    assert actual <= 2 * eager + 4 * torch.finfo(torch.float32).eps * best.norm()


def test_cell_centres_find_the_cells_of_the_grid():
    logits = torch.randn(1, 7, 16, 32)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(32), indexing="ij")
    centres = torch.stack([(x + 0.5) / 32, (y + 0.5) / 16], -1).reshape(1, -1, 2)
    assert torch.equal(choose(logits, centres, centres[:, :0], 60), segops.topk_uncertain_grid(logits, 60)[1])


def test_outside_all_classes_are_zero_and_tie():
    """Zero padding: the margin far outside is 0, so such points are the most uncertain, the first ones first."""
    candidates = torch.tensor([[0.5, 0.5], [3.0, 0.5], [0.5, -1e30], [-2.0, 7.0]])[None]
    points = choose(torch.rand(1, 3, 4, 4) + torch.arange(3).view(1, 3, 1, 1), candidates, candidates[:, :0], 4)
    assert torch.equal(points[0], candidates[0, [1, 2, 3, 0]])


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("last", [False, True])
def test_points_without_a_margin_are_least_uncertain(channels, last):
    logits = torch.randn(1, channels, 9, 9)
    logits[0, 0, 4, 4] = math.nan
    if last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    candidates = torch.rand(1, 80, 2) * 0.3
    bad = [[0.5, 0.5], [math.nan, 0.1], [0.1, math.inf], [-math.inf, 0.2]]
    candidates[0, 10:14] = torch.tensor(bad)
    points = choose(logits, candidates, candidates[:, :0], 80)
    assert torch.equal(points[0, -4:].nan_to_num(9), torch.tensor(bad).nan_to_num(9))


def test_everything_nan_or_infinite():
    candidates = torch.rand(1, 30, 2)
    for value in (math.nan, math.inf, -math.inf):
        points = choose(torch.full((1, 3, 4, 4), value), candidates, candidates[:, :2], 10)
        assert points.shape == (1, 12, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    logits = torch.randn(2, 4, 6, 7).to(dtype)
    points = segops.uncertain_points(logits, 40, generator=torch.Generator().manual_seed(0))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    again = segops.uncertain_points(logits.to(wide), 40, generator=torch.Generator().manual_seed(0))
    assert points.dtype == wide
    assert torch.equal(points, again)


@pytest.mark.parametrize(("num_points", "important"), [(0, 0), (1, 0), (2, 1), (4, 3)])
def test_few_points(num_points, important):
    logits = torch.randn(2, 3, 5, 5)
    points = segops.uncertain_points(logits, num_points, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)
    draws = [torch.rand(2, n, 2, generator=g) for n in (3 * num_points, num_points - important)]
    assert torch.equal(points, oracle(logits, *draws, important))


def test_all_of_them_chosen_and_none_of_them():
    logits = torch.randn(2, 3, 5, 5)
    for ratio in (0, 1):
        points = segops.uncertain_points(logits, 10, oversample_ratio=1, importance_sample_ratio=ratio)
        assert points.shape == (2, 10, 2)
        assert ((points >= 0) & (points <= 1)).all()


def test_more_candidates_than_one_chunk_holds():
    logits, candidates = (
        torch.randint(-9, 10, (1, 3, 8, 8)).double(),
        torch.randint(0, 257, (1, 30000, 2)).double() / 256,
    )
    assert torch.equal(*(f(logits, candidates, candidates[:, :5], 12345) for f in (choose, oracle)))


def test_layouts():
    plain, candidates, others = torch.randn(2, 5, 8, 9), torch.rand(2, 50, 2), torch.rand(2, 7, 2)
    expected = choose(plain, candidates, others, 20)
    for logits in (plain.mT.contiguous().mT, torch.stack([plain, plain], -1)[..., 0]):
        assert torch.equal(choose(logits, candidates.mT.contiguous().mT, others.mT.contiguous().mT, 20), expected)


def test_results_carry_no_gradient():
    assert not segops.uncertain_points(torch.randn(1, 3, 4, 5, requires_grad=True), 8).requires_grad


def test_shapes_without_tensors_behind_them():
    points = segops.uncertain_points(torch.empty(2, 3, 4, 5, device="meta"), 16)
    assert (points.shape, points.dtype, points.device.type) == ((2, 16, 2), torch.float32, "meta")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.rand(2, 4, 5)}, ValueError, r"logits: expected 4 dimensions \(N, C, H, W\), got shape"),
        ({"logits": torch.rand(1, 2, 4, 0)}, ValueError, "logits: expected at least one channel, row and column"),
        ({"logits": torch.ones(1, 2, 4, 5).bool()}, TypeError, "logits: expected float64, .* got torch.bool"),
        ({"num_points": -1}, ValueError, "num_points: expected an integer >= 0, got -1"),
        ({"num_points": 3.0}, TypeError, "num_points: expected an integer, got float"),
        ({"oversample_ratio": 0.5}, ValueError, "oversample_ratio: expected at least 1, got 0.5"),
        ({"oversample_ratio": math.inf}, ValueError, "oversample_ratio: expected a finite number, got inf"),
        ({"importance_sample_ratio": 1.5}, ValueError, "importance_sample_ratio: expected 0 to 1, got 1.5"),
        ({"importance_sample_ratio": math.nan}, ValueError, "importance_sample_ratio: expected a finite number"),
        ({"importance_sample_ratio": "all"}, TypeError, "importance_sample_ratio: expected a number, got str"),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator, got int"),
        (
            {"generator": torch.Generator(), "logits": torch.empty(1, 2, 4, 5, device="meta")},
            ValueError,
            "generator: expected device meta like logits, got cpu",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"logits": torch.rand(1, 2, 4, 5), "num_points": 5, **change}
    with pytest.raises(error, match=message):
        segops.uncertain_points(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"important": 31},
        {"candidates": torch.rand(2, 30, 2)},
        {"candidates": torch.rand(1, 30, 3)},
        {"others": torch.rand(1, 4, 2, dtype=torch.float64)},
    ],
)
def test_the_operator_guards_its_memory(change):
    arguments = {
        "logits": torch.rand(1, 2, 4, 5),
        "candidates": torch.rand(1, 30, 2),
        "others": torch.rand(1, 4, 2),
        "important": 10,
    }
    with pytest.raises(RuntimeError, match="uncertain_points: expected logits"):
        choose(*(arguments | change).values())
