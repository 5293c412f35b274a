"""segops.gaussian_filter_exact: golden cases, symmetry, tiles that are skipped, bad input."""

from __future__ import annotations

import math

import golden_crf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference.gaussian_filter_exact import gaussian_filter_exact as oracle


@pytest.mark.parametrize("name", golden_crf.names("crf_lattice_raw_*"))
def test_golden(name):
    arrays = golden_crf.load(name)
    values, features = torch.from_numpy(arrays["values"])[None], torch.from_numpy(arrays["feats"])[None]
    for v, key in ((values, "exact_sum"), (torch.ones_like(values[:, :1]), "exact_ones")):
        peer = torch.from_numpy(arrays[key])
        out = segops.gaussian_filter_exact(v, features)[0]
        assert (out - peer).norm() <= 1e-6 * peer.norm()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 60),
    dim=st.integers(1, 24),
    points=st.integers(1, 700),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    shared=st.booleans(),
)
def test_any_sizes_agree_with_the_definition(batch, channels, dim, points, scale, shared):
    g = torch.Generator().manual_seed(points)
    values = torch.randn(batch, channels, points, generator=g, dtype=torch.float64)
    features = scale * torch.randn(1 if shared else batch, dim, points, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        segops.gaussian_filter_exact(values, features), oracle(values, features), rtol=1e-11, atol=1e-11
    )


def test_filter_is_its_own_adjoint():
    features = torch.randn(1, 3, 400, dtype=torch.float64)
    x, y = torch.randn(2, 1, 2, 400, dtype=torch.float64)
    torch.testing.assert_close(
        (segops.gaussian_filter_exact(x, features) * y).sum(), (x * segops.gaussian_filter_exact(y, features)).sum()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clusters_too_far_apart_to_see_each_other(dtype):
    """Tiles whose exponentials are all 0 are skipped; nothing else may be."""
    features = torch.randn(1, 2, 1500, dtype=dtype)
    features[..., 500:] += 14  # exp(-98) is 0 in float32 after rounding to it, and not in float64
    features[..., 1000:] += 1000
    values = torch.rand(1, 3, 1500, dtype=dtype)
    out, reference = segops.gaussian_filter_exact(values, features), oracle(values.double(), features.double())
    assert (out.double() - reference).norm() <= (1e-6 if dtype == torch.float32 else 1e-13) * reference.norm()


def test_many_terms_keep_float32_accurate():
    values, features = torch.rand(1, 1, 20000), 0.3 * torch.randn(1, 2, 20000)
    exact = segops.gaussian_filter_exact(values.double(), features.double())
    assert (segops.gaussian_filter_exact(values, features) - exact).norm() <= 1e-6 * exact.norm()


def test_gradients_are_the_same_on_any_number_of_threads():
    values, features = torch.rand(1, 3, 1000, requires_grad=True), torch.randn(1, 2, 1000, requires_grad=True)
    threads = torch.get_num_threads()
    try:
        outs = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            out = segops.gaussian_filter_exact(values, features)
            outs.append((out, *torch.autograd.grad(out.square().sum(), (values, features))))
    finally:
        torch.set_num_threads(threads)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, outs[0], strict=True))


def test_memory_stays_linear():
    """With the 30,000 x 30,000 matrix this would take 3.6 GB."""
    import resource

    values, features = torch.rand(1, 1, 30000), 100 * torch.rand(1, 2, 30000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    segops.gaussian_filter_exact(values, features)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    ("values", "features", "error", "message"),
    [
        (
            torch.rand(3, 50),
            torch.rand(1, 2, 50),
            ValueError,
            r"values: expected 3 dimensions \(N, V, P\), got shape \(3, 50\)",
        ),
        (torch.rand(2, 3, 50), torch.rand(3, 2, 50), ValueError, r"features: expected shape \(2 or 1, D, 50\)"),
        (
            torch.ones(1, 3, 50, dtype=torch.bool),
            torch.rand(1, 2, 50),
            TypeError,
            "values: expected float64, .* got torch.bool",
        ),
        (
            torch.rand(1, 3, 50),
            torch.full((1, 2, 50), math.nan),
            ValueError,
            "features: expected finite values, got NaN or inf",
        ),
        (
            torch.rand(1, 3, 50),
            torch.full((1, 2, 50), -math.inf),
            ValueError,
            "features: expected finite values, got NaN or inf",
        ),
    ],
)
def test_bad_arguments(values, features, error, message):
    with pytest.raises(error, match=message):
        segops.gaussian_filter_exact(values, features)
