"""segops.aspp: equal to its branches one by one, all ways to combine them, memory layouts, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops

LAYOUTS = [torch.contiguous_format, torch.channels_last]
RATES = [1, 3, 6]


def inputs(channels: int, counts: list[int], size=(2, 9, 11), dtype=torch.float64, layout=torch.contiguous_format):
    n, h, w = size
    kernels = [1, 3, 5][: len(counts)]
    x = torch.randn(n, channels, h, w, dtype=dtype).to(memory_format=layout)
    weights = [torch.randn(k, channels, s, s, dtype=dtype) for k, s in zip(counts, kernels, strict=True)]
    biases = [torch.randn(k, dtype=dtype) for k in counts]
    return x.requires_grad_(), [w.requires_grad_() for w in weights], [b.requires_grad_() for b in biases]


def plain(x, weights, biases, rates) -> list[torch.Tensor]:
    return [
        torch.nn.functional.conv2d(x, w, b, dilation=r, padding=r * (w.shape[2] // 2))
        for w, b, r in zip(weights, biases, rates, strict=True)
    ]


def gradients(out: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    return torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=g, dtype=torch.float64).to(out))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("concat", lambda outs: torch.cat(outs, 1)),
        ("sum", sum),
        ("hierarchical", lambda outs: torch.cat([outs[0], outs[1], outs[1] + outs[2]], 1)),
    ],
)
def test_combinations(combine, expected, layout):
    x, weights, biases = inputs(5, [4, 4, 4], layout=layout)
    out = segops.aspp(x, weights, biases, RATES, combine=combine)
    wanted = expected(plain(x, weights, biases, RATES))
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    assert combine == "hierarchical" or out.is_contiguous(memory_format=layout)
    leaves = [x, *weights, *biases]
    for a, b in zip(gradients(out, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.tuples(st.integers(0, 2), st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(LAYOUTS),
)
def test_branches_are_convolutions(channels, counts, size, layout):
    torch.manual_seed(channels)
    x, weights, biases = inputs(channels, counts, size, layout=layout)
    rates = [1, 7, 12][: len(counts)]
    for a, b in zip(segops.aspp(x, weights, biases, rates), plain(x, weights, biases, rates), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("combine", "expected", "channels", "counts"),
    [
        ("concat", lambda outs: torch.cat(outs, 1), 64, [32, 48]),
        ("sum", sum, 64, [33, 33]),
        ("concat", lambda outs: torch.cat(outs, 1), 64, [21, 7]),
        ("sum", sum, 1024, [21, 21]),
    ],
)
def test_wide_branches_in_single_precision(combine, expected, channels, counts, batch, layout):
    """Which CPUs compute by oneDNN, or where results are few by their own kernels: as the processor likes it."""
    x, weights, biases = inputs(channels, counts, (batch, 17, 15), torch.float32, layout)
    wide = [t.detach().double().requires_grad_() for t in (x, *weights, *biases)]
    out = segops.aspp(x, weights, biases, [1, 6], combine=combine)
    wanted = expected(plain(wide[0], wide[1:3], wide[3:], [1, 6]))
    assert out.is_contiguous(memory_format=layout)
    pairs = [(out, wanted), *zip(gradients(out, x, *weights, *biases), gradients(wanted, *wide), strict=True)]
    for a, b in pairs:
        assert float((a.double() - b).norm().detach()) <= 2e-6 * float(b.norm().detach())


def test_biases_may_be_missing():
    x, weights, biases = inputs(5, [4, 4, 4])
    outs = segops.aspp(x, weights, [None, biases[1], None], RATES)
    bare = segops.aspp(x, weights, None, RATES)
    torch.testing.assert_close(outs[0], bare[0])
    torch.testing.assert_close(outs[1], bare[1] + biases[1][:, None, None])


def test_half_precision_is_summed_in_float32():
    x, weights, biases = inputs(5, [4, 4, 4], dtype=torch.bfloat16)
    out = segops.aspp(x, weights, biases, RATES, combine="sum")
    wide = segops.aspp(x.float(), [w.float() for w in weights], [b.float() for b in biases], RATES, combine="sum")
    assert torch.equal(out, wide.bfloat16())


def test_what_is_not_a_number_spreads_as_far_as_a_tap_reaches():
    x, weights, biases = inputs(4, [3, 3, 2], dtype=torch.float32)
    x = x.detach().clone()
    x[1, 2, 4, 5] = torch.nan
    for out, wanted in zip(segops.aspp(x, weights, biases, RATES), plain(x, weights, biases, RATES), strict=True):
        assert torch.equal(out.isnan(), wanted.isnan())


def test_branches_that_are_no_list():
    x, weights, _ = inputs(4, [3])
    with pytest.raises(TypeError, match="biases: expected a list, one for each branch, got int"):
        segops.aspp(x, weights, 5, [1])
    with pytest.raises(TypeError, match="rates: expected a list, one for each branch, got int"):
        segops.aspp(x, weights, None, 1)


X, W = torch.rand(2, 4, 5, 6), torch.rand(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X[0], [W], None, [2]), {}, ValueError, r"input: expected 4 dimensions \(N, C, H, W\), got shape \(4, 5, 6\)"),
        ((X[:, :, :0], [W], None, [2]), {}, ValueError, r"input: expected at least one row and column, got shape"),
        ((X, W, None, [2]), {}, TypeError, "weights: expected a list, one for each branch, got Tensor"),
        ((X, [W], None, 2), {}, TypeError, "rates: expected a list, one for each branch, got int"),
        (
            (X, [], None, []),
            {},
            ValueError,
            "rates: expected one for each of at least one branch, got 0 with 0 weights",
        ),
        ((X, [W], None, [2, 3]), {}, ValueError, "rates: expected one for each .* got 2 with 1 weights and 1 biases"),
        (
            (X, [W], [None] * 2, [2]),
            {},
            ValueError,
            "rates: expected one for each .* got 1 with 1 weights and 2 biases",
        ),
        ((X, [W, W[:, :3]], None, [2, 3]), {}, ValueError, r"weights\[1\]: expected shape \(K, 4, kh, kw\)"),
        ((X, [W[..., :2]], None, [2]), {}, ValueError, r"weights\[0\]: expected an odd height and width of the kernel"),
        (
            (X, [W.half()], None, [2]),
            {},
            TypeError,
            r"weights\[0\]: expected torch.float32 like input, got torch.float16",
        ),
        ((X, [W], [torch.rand(5)], [2]), {}, ValueError, r"biases\[0\]: expected shape \(6,\) to go with weight"),
        ((X, [W], None, [0]), {}, ValueError, r"rates\[0\]: expected an integer >= 1, got 0"),
        ((X, [W], None, [1.5]), {}, TypeError, r"rates\[0\]: expected an integer, got float"),
        ((X, [W], None, [2]), {"combine": "max"}, ValueError, "combine: expected one of 'list', .* got 'max'"),
        (
            (X, [W, W[:2]], None, [2, 3]),
            {"combine": "sum"},
            ValueError,
            r"weights: expected the same K .* got \[6, 2\]",
        ),
    ],
)
def test_bad_arguments(args, options, error, message):
    with pytest.raises(error, match=message):
        segops.aspp(*args, **options)
