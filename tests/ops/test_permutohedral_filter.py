"""segops.permutohedral_filter: golden cases, linearity and adjoint, bad input."""

from __future__ import annotations

import math

import golden_crf
import pytest
import torch

import segops


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
@pytest.mark.parametrize("name", golden_crf.names("crf_lattice_raw_*"))
def test_equals_the_peers_lattice(name, backend):
    arrays = golden_crf.load(name)
    few = 1 if backend == "triton" else 6  # channels; the interpreter is slow
    values, features = torch.from_numpy(arrays["values"])[None, :few], torch.from_numpy(arrays["feats"])[None]
    with segops.backend(backend):
        for reverse, key in ((False, "krahenbuehl_forward"), (True, "krahenbuehl_reverse")):
            peer = torch.from_numpy(arrays[key])[:few]
            out = segops.permutohedral_filter(values, features, reverse=reverse)[0]
            assert (out - peer).abs().max() <= 1e-5 * peer.abs().max()


@pytest.mark.parametrize("name", golden_crf.names("crf_lattice_raw_*"))
def test_divided_by_its_norm_it_is_monais_filter(name):
    arrays = golden_crf.load(name)
    values, features = torch.from_numpy(arrays["values"])[None], torch.from_numpy(arrays["feats"])[None]
    norm = segops.permutohedral_filter(torch.ones_like(values[:, :1]), features)
    out = segops.permutohedral_filter(values, features) / norm
    torch.testing.assert_close(out[0], torch.from_numpy(arrays["monai_phl"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 12])
def test_reverse_is_the_adjoint(dim):
    features = torch.randn(1, dim, 200, dtype=torch.float64)
    x, y = torch.randn(2, 1, 3, 200, dtype=torch.float64)
    forward = (segops.permutohedral_filter(x, features) * y).sum()
    backward = (x * segops.permutohedral_filter(y, features, reverse=True)).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)
    assert dim == 1 or not torch.allclose(
        segops.permutohedral_filter(x, features), segops.permutohedral_filter(x, features, reverse=True)
    )


def test_approximates_the_exact_filter_where_points_are_dense():
    grid = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")).reshape(1, 2, -1) / 4
    values = torch.rand(1, 2, 3600)
    ones = torch.ones(1, 1, 3600)
    lattice = segops.permutohedral_filter(values, grid) / segops.permutohedral_filter(ones, grid)
    exact = segops.gaussian_filter_exact(values, grid) / segops.gaussian_filter_exact(ones, grid)
    inside = torch.zeros(60, 60, dtype=torch.bool)
    inside[15:45, 15:45] = True  # at the border of the points the lattice has no vertices to blur to
    error = ((lattice - exact) / exact)[..., inside.flatten()].abs()
    assert error.mean() < 0.01


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_on_a_grid_all_take_the_same_vertices(backend):
    """Pixels lie on faces of the lattice's cells, where the last bit decides; every kernel rounds alike."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    color = torch.randint(0, 4, (3, 180)) * 64 / 13.0
    features = torch.cat([torch.stack([x / 3, y / 3]).flatten(1), color])[None].double()
    values = torch.rand(1, 2, 180, dtype=torch.float64)
    with segops.backend("reference"):
        expected = [segops.permutohedral_filter(values, f) for f in (features[:, :2], features)]
    with segops.backend(backend):
        actual = [segops.permutohedral_filter(values, f) for f in (features[:, :2], features)]
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_identical_points_are_one_point():
    values = torch.rand(1, 4, 100, dtype=torch.float64)
    out = segops.permutohedral_filter(values, torch.zeros(1, 3, 100, dtype=torch.float64))
    torch.testing.assert_close(out, out[..., :1].expand_as(out))
    single = segops.permutohedral_filter(values.sum(2, keepdim=True), torch.zeros(1, 3, 1, dtype=torch.float64))
    torch.testing.assert_close(out[..., :1], single)


def test_same_result_on_any_number_of_threads():
    values, features = torch.rand(1, 5, 5000), torch.randn(1, 3, 5000)
    threads = torch.get_num_threads()
    try:
        outs = []
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            outs.append(segops.permutohedral_filter(values, features))
            assert torch.equal(outs[-1], segops.permutohedral_filter(values, features))  # to the bit, for one number
    finally:
        torch.set_num_threads(threads)
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-5, atol=1e-5)


def test_second_derivative():
    values = torch.randn(1, 2, 20, dtype=torch.float64, requires_grad=True)
    features = torch.randn(1, 2, 20, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda v: segops.permutohedral_filter(v, features).square(), (values,))


@pytest.mark.parametrize(
    ("values", "features", "error", "message"),
    [
        (
            torch.rand(3, 50),
            torch.rand(1, 2, 50),
            ValueError,
            r"values: expected 3 dimensions \(N, V, P\), got shape \(3, 50\)",
        ),
        (torch.rand(1, 3, 50), torch.rand(2, 50), ValueError, r"features: expected 3 dimensions \(N or 1, D, P\)"),
        (torch.rand(1, 3, 50), torch.rand(1, 2, 40), ValueError, r"features: expected shape \(1 or 1, D, 50\)"),
        (
            torch.rand(1, 3, 50),
            torch.rand(1, 0, 50),
            ValueError,
            "features: expected 1 to 24 features per point, got D = 0",
        ),
        (
            torch.ones(1, 3, 50, dtype=torch.int32),
            torch.rand(1, 2, 50),
            TypeError,
            "values: expected float64, .* got torch.int32",
        ),
        (torch.rand(1, 3, 50), torch.ones(1, 2, 50, dtype=torch.int64), TypeError, "features: expected float64"),
        (None, torch.rand(1, 2, 50), TypeError, "values: expected a tensor .* got NoneType"),
        (
            torch.rand(1, 3, 50),
            torch.full((1, 2, 50), math.nan),
            ValueError,
            "features: expected finite values, got NaN or inf",
        ),
        (
            torch.rand(1, 3, 50),
            torch.full((1, 2, 50), math.inf),
            ValueError,
            "features: expected finite values, got NaN or inf",
        ),
        (
            torch.rand(1, 3, 50),
            torch.full((1, 2, 50), 1e30),
            ValueError,
            "features: values span too many lattice cells",
        ),
    ],
)
def test_bad_arguments(values, features, error, message):
    with pytest.raises(error, match=message):
        segops.permutohedral_filter(values, features)


def test_nan_values_spread_but_do_no_harm():
    values = torch.rand(1, 1, 50)
    values[0, 0, 3] = math.nan
    out = segops.permutohedral_filter(values, torch.cat([torch.zeros(1, 1, 25), 1000 + torch.zeros(1, 1, 25)], 2))
    assert torch.isnan(out[..., :25]).all() and torch.isfinite(out[..., 25:]).all()
