"""segops.em_attention: golden values, symmetries, bases that get nothing, huge and bad input."""

from __future__ import annotations

import math

import golden_crf
import pytest
import torch
from halves import assert_summed_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference.em_attention import em_attention as oracle

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("em_attention").items()}


def close(actual: torch.Tensor, expected: torch.Tensor, eps: float = 2e-6) -> bool:
    return bool((actual.double() - expected.double()).norm() <= eps * expected.double().norm())


def random(n: int, channels: int, pixels: int, bases: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    mu = torch.nn.functional.normalize(torch.randn(1, channels, bases, dtype=dtype), dim=1)
    return torch.randn(n, channels, pixels, dtype=dtype), mu


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("case", ["a", "b", "c", "k64"])
def test_golden(case, iterations):
    x, mu = GOLDEN[f"{case}_x"].requires_grad_(), GOLDEN[f"{case}_mu0"].requires_grad_()
    peer = {k: GOLDEN[f"{case}_T{iterations}_{k}"] for k in ("out", "mu", "unrolled_dx", "unrolled_dmu0")}
    out, bases = segops.em_attention(x, mu, iterations=iterations, unrolled=True)
    dx, dmu = torch.autograd.grad(out, (x, mu), GOLDEN[f"{case}_gout"])
    assert close(out, peer["out"]) and close(bases, peer["mu"])
    assert close(dx, peer["unrolled_dx"]) and close(dmu, peer["unrolled_dmu0"])


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("case", ["a", "b", "c", "k64"])
def test_golden_of_mmsegmentation(case, iterations):
    out, bases = segops.em_attention(
        GOLDEN[f"{case}_x"], GOLDEN[f"{case}_mu0"], iterations=iterations, eps_mode="clamp"
    )
    assert close(out, GOLDEN[f"{case}_T{iterations}_mmseg_out"])
    assert close(bases, GOLDEN[f"{case}_T{iterations}_mmseg_bases"])


def test_as_published_no_gradient_passes():
    x, mu = random(2, 6, 20, 3)
    outputs = segops.em_attention(x.requires_grad_(), mu.requires_grad_())
    assert not any(y.requires_grad for y in outputs)
    assert all(y.requires_grad for y in segops.em_attention(x, mu, unrolled=True))
    for a, b in zip(outputs, segops.em_attention(x, mu, unrolled=True), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 40),
    pixels=st.integers(1, 300),
    bases=st.integers(1, 70),
    iterations=st.integers(1, 3),
    eps_mode=st.sampled_from(["add", "clamp"]),
)
def test_any_sizes_agree_with_the_definition(batch, channels, pixels, bases, iterations, eps_mode):
    torch.manual_seed(pixels)
    x, mu = random(batch, channels, pixels, bases)
    outs = segops.em_attention(x, mu, iterations=iterations, eps_mode=eps_mode)
    expected, history, _ = oracle(x, mu, iterations, eps_mode)
    torch.testing.assert_close(outs, (expected, history[-1]), rtol=1e-10, atol=1e-11)


def test_gradients_of_many_tiles():
    """Several threads, tiles and rows of bases that are no multiple of anything."""
    x, mu = (t.requires_grad_() for t in random(2, 37, 1001, 21))
    out, bases = segops.em_attention(x, mu, unrolled=True)
    expected, history, _ = oracle(x, mu, 3, "add")
    directions = torch.randn_like(out), torch.randn_like(bases)
    actual = torch.autograd.grad((out, bases), (x, mu), directions)
    wanted = torch.autograd.grad((expected, history[-1]), (x, mu), directions)
    assert all(close(a, b, 1e-10) for a, b in zip(actual, wanted, strict=True))


def test_a_permutation_of_pixels_permutes_the_output():
    x, mu = random(2, 8, 150, 5)
    order = torch.randperm(150)
    out, bases = segops.em_attention(x, mu)
    permuted, same = segops.em_attention(x[..., order], mu)
    torch.testing.assert_close(permuted, out[..., order])
    torch.testing.assert_close(same, bases)


def test_a_permutation_of_bases_changes_nothing():
    x, mu = random(1, 8, 150, 5)
    order = torch.randperm(5)
    out, bases = segops.em_attention(x, mu)
    same, permuted = segops.em_attention(x, mu[..., order])
    torch.testing.assert_close(same, out)
    torch.testing.assert_close(permuted, bases[..., order])


def test_bases_have_unit_length_and_one_basis_is_the_mean():
    x, mu = random(3, 7, 90, 4)
    _, bases = segops.em_attention(x, mu)
    torch.testing.assert_close(bases.norm(dim=1), torch.ones(3, 4, dtype=torch.float64), rtol=1e-4, atol=0)
    _, one = segops.em_attention(x, mu[..., :1], eps_mode="clamp")
    torch.testing.assert_close(one, torch.nn.functional.normalize(x.mean(2, keepdim=True), dim=1))


def test_pixels_far_along_orthogonal_bases_find_them():
    """Responsibilities are then one or zero, and the bases stay what they are."""
    mu = torch.eye(6, dtype=torch.float64)[None, :, :4]
    label = torch.arange(4).repeat(30)
    out, bases = segops.em_attention(200 * mu[..., label], mu, eps_mode="clamp")
    torch.testing.assert_close(bases, mu)
    torch.testing.assert_close(out, mu[..., label])


def test_huge_values_stay_finite():
    """Logits of 1e6 and more; some bases then get no pixel at all."""
    x, mu = (t.float().requires_grad_() for t in random(1, 16, 200, 32))
    for eps_mode in ("add", "clamp"):
        out, bases = segops.em_attention(1e6 * x, mu, unrolled=True, eps_mode=eps_mode)
        expected, history, _ = oracle(1e6 * x.double(), mu.double(), 3, eps_mode)
        assert close(out, expected, 1e-5) and close(bases, history[-1], 1e-5)
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (x, mu)))


def test_not_a_number_spreads_over_its_image_only():
    x, mu = random(2, 4, 50, 3, torch.float32)
    x[0, 1, 7] = math.nan
    out, bases = segops.em_attention(x, mu)
    assert out[0].isnan().all() and bases[0].isnan().all()
    assert out[1].isfinite().all() and bases[1].isfinite().all()


@pytest.mark.parametrize("sizes", [(2, 8, 40, 4), (1, 33, 211, 7), (1, 5, 97, 17)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, sizes):
    x, mu = (t.to(dtype) for t in random(*sizes))
    assert_summed_in_float32(lambda *t: segops.em_attention(*t, unrolled=True)[0], x, mu)
    assert_summed_in_float32(lambda *t: segops.em_attention(*t, unrolled=True)[1], x, mu)


def test_bases_in_float32_stay_what_they_are():
    x, mu = random(2, 8, 40, 4)
    out, bases = segops.em_attention(x.bfloat16(), mu.float())
    assert (out.dtype, bases.dtype) == (torch.bfloat16, torch.float32)


def test_maps_of_images_any_layout_and_no_image():
    x, mu = random(2, 8, 63, 4)
    image = x.view(2, 8, 7, 9).contiguous(memory_format=torch.channels_last)
    out, bases = segops.em_attention(image, mu)
    flat = segops.em_attention(x, mu.expand(2, 8, 4))
    assert torch.equal(out.flatten(2), flat[0]) and torch.equal(bases, flat[1]) and out.is_contiguous()
    out, bases = segops.em_attention(image[:0], mu)
    assert out.shape == (0, 8, 7, 9) and bases.shape == (0, 8, 4)


def test_results_repeat():
    x, mu = random(2, 32, 2000, 16, torch.float32)
    first = segops.em_attention(x, mu)
    assert all(torch.equal(a, b) for a, b in zip(first, segops.em_attention(x, mu), strict=True))


X, MU = torch.rand(2, 4, 5, 6), torch.rand(1, 4, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X[0, 0], MU), {}, ValueError, r"x: expected 4 dimensions \(N, C, H, W\) or \(N, C, P\), got shape \(5, 6\)"),
        ((X.numpy(), MU), {}, TypeError, "x: expected a tensor .* got ndarray"),
        ((X.long(), MU), {}, TypeError, "x: expected float64, .* got torch.int64"),
        ((X.to_sparse(), MU), {}, TypeError, "x: expected a dense tensor"),
        ((X[..., :0], MU), {}, ValueError, r"x: expected at least one channel and one pixel, got shape \(2, 4, 5, 0\)"),
        ((X, MU[0]), {}, ValueError, r"bases: expected 3 dimensions \(N or 1, C, K\), got shape \(4, 3\)"),
        ((X, MU[..., :0]), {}, ValueError, r"bases: expected shape \(2 or 1, 4, K\) with K >= 1 .* got \(1, 4, 0\)"),
        ((X, MU.expand(3, 4, 3)), {}, ValueError, r"bases: expected shape \(2 or 1, 4, K\) .* got \(3, 4, 3\)"),
        ((X, MU.bool()), {}, TypeError, "bases: expected float64, .* got torch.bool"),
        ((X, MU.to("meta")), {}, ValueError, "bases: expected device cpu like x, got meta"),
        ((X, MU), {"iterations": 0}, ValueError, "iterations: expected at least 1, got 0"),
        ((X, MU), {"iterations": 1.5}, TypeError, "iterations: expected an integer, got float"),
        ((X, MU), {"eps_mode": "none"}, ValueError, "eps_mode: expected one of 'add', 'clamp', got 'none'"),
    ],
)
def test_bad_arguments(args, options, error, message):
    with pytest.raises(error, match=message):
        segops.em_attention(*args, **options)
