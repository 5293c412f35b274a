"""segops.encoding: the published formula, symmetries, close and far codewords, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from halves import assert_summed_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st

import segops


def published(x: torch.Tensor, codewords: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As the authors' code has it, with N x P x K x D residuals."""
    residuals = x.flatten(2).mT[:, :, None] - codewords
    assignment = torch.softmax(scale * residuals.square().sum(3), 2)
    return (assignment[..., None] * residuals).sum(1)


def random(n: int, channels: int, pixels: int, codes: int, dtype=torch.float64) -> list[torch.Tensor]:
    inputs = torch.randn(n, channels, pixels), 0.7 * torch.randn(codes, channels), -torch.rand(codes) / channels**0.5
    return [t.to(dtype) for t in inputs]


def close(actual: torch.Tensor, expected: torch.Tensor, eps: float) -> bool:
    return bool((actual.double() - expected).norm() <= eps * expected.norm())


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 80),
    pixels=st.integers(1, 300),
    codes=st.integers(1, 40),
)
def test_any_sizes_agree_with_the_published_formula(batch, channels, pixels, codes):
    torch.manual_seed(pixels)
    inputs = random(batch, channels, pixels, codes)
    torch.testing.assert_close(segops.encoding(*inputs), published(*inputs), rtol=1e-10, atol=1e-11)


def test_gradients_are_those_of_the_published_formula():
    """Several images, threads, tiles and runs of channels, and codewords that are no multiple of anything."""
    inputs = [t.requires_grad_() for t in random(3, 150, 500, 21)]
    out = segops.encoding(*inputs)
    direction = torch.randn_like(out)
    wanted = torch.autograd.grad(published(*inputs), inputs, direction)
    for a, b in zip(torch.autograd.grad(out, inputs, direction), wanted, strict=True):
        assert close(a, b, 1e-10)


def test_the_order_of_pixels_is_nothing():
    x, codewords, scale = random(2, 8, 150, 5)
    torch.testing.assert_close(
        segops.encoding(x[..., torch.randperm(150)], codewords, scale), segops.encoding(x, codewords, scale)
    )


def test_a_common_offset_is_nothing():
    x, codewords, scale = random(2, 8, 150, 5)
    torch.testing.assert_close(
        segops.encoding(x + 100, codewords + 100, scale), segops.encoding(x, codewords, scale), rtol=1e-9, atol=1e-9
    )


def test_pixels_close_to_their_codeword_and_far_from_the_origin_stay_exact():
    """|x|^2 - 2 x c + |c|^2 would leave nothing of these distances in float32."""
    codewords = 1000 + torch.randint(0, 8, (4, 16)).float()
    x = (codewords[torch.arange(4).repeat(50)] + torch.randint(-3, 4, (200, 16)) / 8).T[None]
    scale = -torch.rand(4) / 100
    expected = published(x.double(), codewords.double(), scale.double())
    assert close(segops.encoding(x, codewords, scale), expected, 1e-5)


@pytest.mark.parametrize("radius", [0.1, 0.03, 0.01])
def test_clusters_tighter_than_codewords_are_apart_lose_as_much_as_the_docs_say(radius):
    """Distances cancel: their error is that of the codewords' squared distances, 2 per channel."""
    torch.manual_seed(0)
    codewords = torch.randn(8, 64)
    x = (codewords[torch.arange(8).repeat(60)] + radius * torch.randn(480, 64)).T[None]
    scale = -torch.rand(8) / (64 * radius**2)
    expected = published(x.double(), codewords.double(), scale.double())
    eps = torch.finfo(torch.float32).eps
    assert close(segops.encoding(x, codewords, scale), expected, 2 * eps / radius**2)


def test_one_codeword_sums_all_residuals():
    x, codewords, scale = random(2, 8, 150, 1)
    torch.testing.assert_close(segops.encoding(x, codewords, scale)[:, 0], x.sum(2) - 150 * codewords[0])


def test_large_negative_scales_assign_to_the_closest():
    x, codewords, _ = random(1, 8, 150, 5)
    nearest = torch.cdist(x[0].T, codewords).argmin(1)
    expected = torch.stack([(x[0].T[nearest == k] - codewords[k]).sum(0) for k in range(5)])
    out = segops.encoding(x, codewords, torch.full((5,), -1e6, dtype=torch.float64))
    torch.testing.assert_close(out[0], expected)


def test_huge_values_stay_finite():
    x, codewords, scale = (t.requires_grad_() for t in random(2, 16, 200, 7, torch.float32))
    out = segops.encoding(1e8 * x, codewords, scale)
    assert close(out, published(1e8 * x.double(), codewords.double(), scale.double()), 1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (x, codewords, scale)))


def test_not_a_number_spreads_over_its_image_only():
    x, codewords, scale = random(2, 4, 50, 3, torch.float32)
    x[0, 1, 7] = math.nan
    out = segops.encoding(x, codewords, scale)
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize("sizes", [(2, 8, 40, 4), (1, 33, 211, 7), (1, 130, 97, 17)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, sizes):
    assert_summed_in_float32(segops.encoding, *(t.to(dtype) for t in random(*sizes)))


def test_halves_are_exact_far_from_the_origin():
    """Pixels and codewords all but cancel: in bfloat16 no mean is taken off, but nothing is rounded before it cancels
    either."""
    x, codewords, scale = random(1, 16, 200, 5)
    assert_summed_in_float32(segops.encoding, *((t + 30 * (t.dim() > 1)).bfloat16() for t in (x, codewords, scale)))


def test_maps_of_images_any_layout_and_no_image():
    x, codewords, scale = random(2, 8, 63, 4)
    image = x.view(2, 8, 7, 9).contiguous(memory_format=torch.channels_last)
    out = segops.encoding(image, codewords.T.contiguous().T, scale)
    assert torch.equal(out, segops.encoding(x, codewords, scale)) and out.is_contiguous()
    assert segops.encoding(image[:0], codewords, scale).shape == (0, 4, 8)


def test_residuals_are_never_in_memory():
    """N x P x K x D of them would take 1.3 GB, and their gradients as much again."""
    import resource

    inputs = [t.requires_grad_() for t in random(1, 128, 40000, 64, torch.float32)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    segops.encoding(*inputs).sum().backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_results_repeat():
    inputs = [t.requires_grad_() for t in random(2, 32, 2000, 16, torch.float32)]

    def run():
        out = segops.encoding(*inputs)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


X, CODES, SCALE = torch.rand(2, 4, 5, 6), torch.rand(3, 4), -torch.rand(3)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X[0, 0], CODES, SCALE), ValueError, r"x: expected 4 dimensions .*, got shape \(5, 6\)"),
        ((X.long(), CODES, SCALE), TypeError, "x: expected float64, .* got torch.int64"),
        ((X[:, :, :0], CODES, SCALE), ValueError, r"x: expected at least one channel and one pixel, got shape"),
        ((X, CODES[0], SCALE), ValueError, r"codewords: expected 2 dimensions \(K, D\), got shape \(4,\)"),
        ((X, CODES[:0], SCALE[:0]), ValueError, r"codewords: expected shape \(K, 4\) with K >= 1 .* got \(0, 4\)"),
        ((X, CODES[:, :3], SCALE), ValueError, r"codewords: expected shape \(K, 4\) .* got \(3, 3\)"),
        ((X, CODES, SCALE[:2]), ValueError, r"scale: expected shape \(3,\) to go with codewords, got \(2,\)"),
        ((X, CODES, 0.5), TypeError, r"scale: expected a tensor \(K,\), got float"),
        ((X, CODES.int(), SCALE), TypeError, "codewords: expected float64, .* got torch.int32"),
        ((X, CODES, SCALE.to("meta")), ValueError, "scale: expected device cpu like x, got meta"),
    ],
)
def test_bad_arguments(args, error, message):
    with pytest.raises(error, match=message):
        segops.encoding(*args)
