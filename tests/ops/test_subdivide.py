"""segops.subdivide: golden cases, the step against interpolation, the loop and its head, bad input."""

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
from segops.reference import subdivide as reference

segops.ops  # noqa: B018  registers the operators
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "uncertain_points.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def linear_head(weight):
    """A point head of one layer, on features and coarse logits."""
    return lambda fine, coarse: weight @ torch.cat([fine, coarse], 1)


def unchanged(fine, coarse):
    return coarse


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("steps", [1, 2])
def test_golden(steps):
    out = segops.subdivide(
        golden("sub_coarse"),
        golden("sub_fine"),
        linear_head(golden("sub_W")),
        steps=steps,
        num_points=int(golden("sub_P")),
    )
    assert close(out, golden(f"sub_step{steps}_logits"))


def test_golden_cells():
    _, first, _ = torch.ops.segops.subdivide(golden("sub_coarse"), 20)
    _, second, _ = torch.ops.segops.subdivide(golden("sub_step1_logits"), 20)
    assert torch.equal(first.sort().values, golden("sub_step1_idx").sort().values)
    assert torch.equal(second.sort().values, golden("sub_step2_idx").sort().values)


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    height=st.integers(1, 40),
    width=st.integers(1, 90),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    threads=st.sampled_from([1, 2, 5]),
)
def test_a_step_is_interpolation_and_selection(batch, channels, height, width, share, dtype, threads):
    g = torch.Generator().manual_seed(height * width)
    logits = torch.randint(-50, 51, (batch, channels, height, width), generator=g).to(dtype) / 8  # sums are exact
    k = int(share * 4 * height * width)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        actual = torch.ops.segops.subdivide(logits, k)
    finally:
        torch.set_num_threads(before)
    larger = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.equal(actual[0], larger)
    for a, b in zip(actual[1:], segops.topk_uncertain_grid(larger, k), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("maps", [1, 2])
def test_the_loop_agrees_with_the_definition(maps):
    coarse = torch.randn(2, 5, 7, 9, dtype=torch.float64)
    features = [torch.randn(2, 3 + i, 20 + i, 31, dtype=torch.float64) for i in range(maps)]
    head = linear_head(torch.randn(5, 5 + sum(x.shape[1] for x in features), dtype=torch.float64))
    out = segops.subdivide(coarse, features if maps > 1 else features[0], head, steps=3, num_points=60)
    expected = reference.subdivision(coarse, features, head, 3, 60)
    assert (out - expected).norm() <= 1e-12 * expected.norm()


def test_a_head_that_repeats_the_coarse_logits_samples_them():
    """Every cell refined, the map is the coarse one sampled at its centres."""
    coarse = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    out = segops.subdivide(coarse, coarse, unchanged, steps=1, num_points=10**6)
    larger = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    inside = (..., slice(1, -1), slice(1, -1))  # within the border's half cell, zero padding fades
    torch.testing.assert_close(out[inside], larger[inside])


def test_no_points_leave_plain_interpolation():
    def never(fine, coarse):
        raise AssertionError("asked without a point")

    coarse = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    out = segops.subdivide(coarse, coarse, never, num_points=0)
    twice = F.interpolate(F.interpolate(coarse, scale_factor=2, mode="bilinear"), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(out, twice)


def test_no_steps_give_a_copy():
    coarse = torch.randn(1, 4, 6, 5).contiguous(memory_format=torch.channels_last)
    out = segops.subdivide(coarse, coarse, unchanged, steps=0)
    assert torch.equal(out, coarse)
    assert out.data_ptr() != coarse.data_ptr()
    assert out.is_contiguous()


def test_an_empty_batch():
    out = segops.subdivide(torch.empty(0, 4, 3, 5), torch.empty(0, 2, 6, 6), unchanged)
    assert out.shape == (0, 4, 12, 20)


def test_it_runs_without_gradients():
    coarse = torch.randn(1, 4, 3, 5, requires_grad=True)
    head = torch.nn.Conv1d(4, 4, 1)
    out = segops.subdivide(coarse, coarse, lambda fine, coarse: head(fine), num_points=10)
    assert not out.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    coarse = torch.randn(2, 4, 6, 7).to(dtype)
    out = segops.subdivide(coarse, coarse, unchanged, num_points=30)
    exact = reference.subdivision(coarse.double(), [coarse.double()], unchanged, 2, 30)
    assert out.dtype == dtype
    # Where cells tie to within rounding, another one may have been refined.
    assert (out - exact).abs().median() <= 4 * torch.finfo(dtype).eps


def test_autocast_takes_a_head_in_half_precision():
    coarse, head = torch.randn(1, 4, 6, 7), torch.nn.Conv1d(4, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = segops.subdivide(coarse, coarse, lambda fine, coarse: head(fine), num_points=20)
    assert out.dtype == torch.float32


def test_nan_logits_are_not_refined_first():
    coarse = torch.randn(1, 3, 5, 6)
    coarse[0, 1, 2, 3] = math.nan
    larger, indices, _ = torch.ops.segops.subdivide(coarse, 100)
    assert larger.isnan().any(1).sum() == 16
    assert not larger.isnan().any(1).flatten()[indices].any()
    assert segops.subdivide(coarse, coarse, unchanged, num_points=5).shape == (1, 3, 20, 24)


def test_layouts():
    plain = torch.randn(2, 5, 8, 9)
    for coarse in (plain.contiguous(memory_format=torch.channels_last), plain.mT.contiguous().mT):
        for a, b in zip(torch.ops.segops.subdivide(coarse, 17), torch.ops.segops.subdivide(plain, 17), strict=True):
            assert a.is_contiguous()
            assert torch.equal(a, b)
    expanded = plain[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(torch.ops.segops.subdivide(expanded, 3)[1][0], torch.arange(3))  # every margin is 0


COARSE = torch.rand(1, 2, 4, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coarse": COARSE[0]}, ValueError, r"coarse: expected 4 dimensions \(N, C, H, W\), got shape \(2, 4, 5\)"),
        ({"coarse": COARSE.int()}, TypeError, "coarse: expected float64, .* got torch.int32"),
        ({"coarse": COARSE[:, :, :0]}, ValueError, "coarse: expected at least one channel, row and column"),
        ({"features": []}, TypeError, r"features: expected a tensor \(N, F, h, w\) or a list of them, got \[\]"),
        ({"features": None}, TypeError, r"features: expected a tensor \(N, F, h, w\) or a list of them, got None"),
        ({"features": [COARSE, COARSE[0]]}, ValueError, r"features\[1\]: expected 4 dimensions"),
        ({"features": torch.rand(2, 3, 4, 5)}, ValueError, r"features: expected a batch of 1 like coarse, got shape"),
        ({"features": COARSE.to("meta")}, ValueError, "features: expected device cpu like coarse, got meta"),
        ({"point_head": 3}, TypeError, "point_head: expected a callable, got int"),
        ({"steps": -1}, ValueError, "steps: expected an integer >= 0, got -1"),
        ({"num_points": 2.0}, TypeError, "num_points: expected an integer, got float"),
        (
            {"point_head": lambda fine, coarse: fine[:, :1]},
            ValueError,
            r"point_head: expected floating-point logits \(1, 2, 7\) on cpu, got torch.float32 \(1, 1, 7\) on cpu",
        ),
        ({"point_head": lambda fine, coarse: coarse.argmax(1)}, ValueError, r"got torch.int64 \(1, 7\) on cpu"),
        ({"point_head": lambda fine, coarse: coarse.int()}, ValueError, r"got torch.int32 \(1, 2, 7\) on cpu"),
        ({"point_head": lambda fine, coarse: None}, ValueError, r"logits \(1, 2, 7\) on cpu, got NoneType"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"coarse": COARSE, "features": COARSE, "point_head": unchanged, "num_points": 7, **change}
    with pytest.raises(error, match=message):
        segops.subdivide(**arguments)


def test_the_operator_guards_its_memory():
    with pytest.raises(RuntimeError, match="k from 0 to 4 H W"):
        torch.ops.segops.subdivide(COARSE, 100)
