"""segops.atrous_conv2d: equal to conv2d on any geometry, skipped taps, memory layouts, second derivatives, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import segops
from segops.testing import assert_as_good_as, assert_gradients_match

conv2d = torch.nn.functional.conv2d
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@st.composite
def convolutions(draw):
    """Sizes of input and weight, and options; rates from 1 to beyond the map."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, results = groups * draw(st.integers(1, 20)), groups * draw(st.integers(1, 40))
    size = [draw(st.integers(1, 24)) for _ in range(2)]
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    options = {
        "stride": [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in range(2)],
        "padding": [draw(st.integers(0, 30)) for _ in range(2)],
        "dilation": [draw(st.integers(1, 30)) for _ in range(2)],
        "groups": groups,
    }
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, options["dilation"], strict=True)]
    assume(all(r <= s + 2 * p for r, s, p in zip(reach, size, options["padding"], strict=True)))
    assume(size[1] >= options["stride"][1] or options["padding"][1] == 0)  # see test_maps_narrower_than_the_stride
    return (draw(st.integers(0, 2)), channels, *size), (results, channels // groups, *kernel), options


def tensors(size, weight, dtype=torch.float64, layout=torch.contiguous_format) -> list[torch.Tensor]:
    x = torch.randn(size, dtype=torch.float64).to(dtype, memory_format=layout)
    rest = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in (weight, weight[:1])]
    return [t.requires_grad_() for t in (x, *rest)]


def step(function, inputs, grad: torch.Tensor | None = None, **options) -> list[torch.Tensor]:
    """The result and the gradients of all inputs."""
    out = function(*inputs, **options)
    grad = torch.ones_like(out) if grad is None else grad.to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("size", "weight", "stride", "padding", "dilation", "groups"),
    [
        ((2, 6, 15, 1), (6, 2, 1, 3), (1, 2), (15, 25), (20, 6), 3),
        ((2, 15, 22, 1), (75, 5, 3, 1), (1, 3), (25, 4), (27, 17), 3),
        ((2, 7, 17, 2), (33, 7, 1, 3), (2, 3), (7, 16), (22, 6), 1),
        ((2, 4, 23, 2), (29, 4, 1, 1), (1, 3), (0, 1), (24, 10), 1),
        ((1, 4, 3, 1), (5, 4, 1, 3), (1, 9), (0, 2), (1, 2), 1),
    ],
)
def test_maps_narrower_than_the_stride(size, weight, stride, padding, dilation, groups, layout):
    """In channels_last they make torch's own conv2d crash, with the oneDNN of torch 2.14; of float64 it takes another."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    inputs = tensors(size, weight, torch.float32, layout)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for actual, oracle in zip(
        step(segops.atrous_conv2d, inputs, **options), step(conv2d, exact, **options), strict=True
    ):
        assert_gradients_match(actual, oracle, 1e-5)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(LAYOUTS), st.sampled_from([torch.float64, torch.float32]))
def test_is_conv2d(convolution, layout, dtype):
    size, weight, options = convolution
    torch.manual_seed(size[1])
    inputs = tensors(size, weight, dtype, layout)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    grad = torch.randn(conv2d(*exact, **options).shape, dtype=torch.float64)
    results = [
        step(f, i, grad, **options) for f, i in ((segops.atrous_conv2d, inputs), (conv2d, inputs), (conv2d, exact))
    ]
    results.append(step(conv2d, [t.detach().abs().requires_grad_() for t in exact], grad.abs(), **options))
    for name, actual, eager, oracle, terms in zip(("out", "input", "weight", "bias"), *results, strict=True):
        assert actual.dtype == dtype
        assert_as_good_as(actual, eager, oracle, name, terms)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rate", "valid"), [(12, 0.77), (36, 0.4), (70, 1 / 9)])
def test_rates_of_segmentation(rate, valid, layout):
    """Several tiles, blocks of channels and depths; the share of taps inside is what the issue of padding is about."""
    inside = (65 + 2 * max(0, 65 - rate)) / (3 * 65)
    assert inside**2 == pytest.approx(valid, abs=0.01)
    inputs = tensors((1, 150, 65, 65), (290, 150, 3, 3), layout=layout)
    grad = torch.randn(1, 290, 65, 65, dtype=torch.float64)
    actual = step(segops.atrous_conv2d, inputs, grad, dilation=rate)
    for a, b in zip(actual, step(conv2d, inputs, grad, dilation=rate, padding=rate), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("results", [8, 21, 30])
def test_few_results_of_many_channels(results, layout):
    """As of a classifier, which some processors leave to oneDNN; a part of a vector at the end."""
    inputs = tensors((2, 1024, 17, 15), (results, 1024, 3, 3), torch.float32, layout)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    pairs = zip(step(segops.atrous_conv2d, inputs, dilation=6), step(conv2d, exact, dilation=6, padding=6), strict=True)
    for a, b in pairs:
        assert float((a.double() - b).norm()) <= 2e-6 * float(b.norm())


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (2, 4), (4, 3)])
def test_same_is_as_conv2d_has_it(kernel):
    x, weight, bias = tensors((2, 3, 9, 11), (4, 3, *kernel))
    out = segops.atrous_conv2d(x, weight, bias, dilation=(3, 2))
    torch.testing.assert_close(out, conv2d(x, weight, bias, dilation=(3, 2), padding="same"), rtol=1e-10, atol=1e-10)


def test_wide_maps_are_cut():
    inputs = tensors((1, 3, 3, 700), (2, 3, 3, 3))
    actual = step(segops.atrous_conv2d, inputs, dilation=2)
    for a, b in zip(actual, step(conv2d, inputs, dilation=2, padding=2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_keep_the_memory_layout(layout):
    x, weight, bias = tensors((2, 8, 7, 9), (4, 8, 3, 3), torch.float32, layout)
    out, grad, *_ = step(segops.atrous_conv2d, (x, weight, bias), dilation=3)
    assert out.is_contiguous(memory_format=layout) and grad.is_contiguous(memory_format=layout)
    assert conv2d(x, weight, bias).is_contiguous(memory_format=layout)


def test_second_derivatives():
    x, weight, bias = tensors((2, 4, 6, 5), (2, 2, 3, 3))
    assert torch.autograd.gradgradcheck(
        lambda *args: segops.atrous_conv2d(*args, dilation=(2, 3), groups=2), (x, weight, bias), fast_mode=True
    )


def test_only_gradients_that_are_wanted():
    x, weight, bias = tensors((1, 3, 5, 5), (2, 3, 3, 3))
    out = segops.atrous_conv2d(x.detach(), weight, bias.detach(), dilation=2)
    assert torch.autograd.grad(out.sum(), weight)[0].shape == weight.shape
    assert not segops.atrous_conv2d(x.detach(), weight.detach()).requires_grad


def test_not_a_number_reaches_the_pixels_that_see_it():
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 3, 3)
    x[0, 1, 4, 4] = math.nan
    seen = segops.atrous_conv2d(x, weight, dilation=4).isnan()
    assert torch.equal(seen, conv2d(x, weight, dilation=4, padding=4).isnan())
    assert int(seen[0, 0].sum()) == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    x, weight, bias = tensors((2, 70, 9, 9), (5, 70, 3, 3), dtype)
    out, *grads = step(segops.atrous_conv2d, (x, weight, bias), dilation=3)
    wide = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    expected, *_ = step(segops.atrous_conv2d, wide, dilation=3)
    assert torch.equal(out, expected.to(dtype)) and all(g.dtype == dtype for g in grads)


def test_autocast_lowers_as_for_conv2d():
    x, weight, bias = tensors((1, 8, 9, 9), (4, 8, 3, 3), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, peer = (f(x, weight, bias, dilation=2, padding=2) for f in (segops.atrous_conv2d, conv2d))
    assert out.dtype == peer.dtype == torch.bfloat16
    assert float((out - peer).detach().float().norm()) <= 4 * torch.finfo(torch.bfloat16).eps * float(
        peer.detach().float().norm()
    )


def test_depthwise_is_the_depthwise_operator():
    x, weight, bias = torch.randn(2, 6, 9, 11), torch.randn(6, 1, 3, 5), torch.randn(6)
    assert "as dynamic_depthwise_conv2d" in segops.explain("atrous_conv2d", x, weight, dilation=3, groups=6)
    for input in (x, x.contiguous(memory_format=torch.channels_last)):
        leaves = [t.double().requires_grad_() for t in (input, weight, bias)]
        out = segops.atrous_conv2d(*leaves, dilation=(3, 2), padding=(3, 4), groups=6)
        peer = torch.nn.functional.conv2d(*leaves, dilation=(3, 2), padding=(3, 4), groups=6)
        torch.testing.assert_close(out, peer, rtol=1e-10, atol=1e-10)
        grad = torch.randn_like(out)
        for a, b in zip(*(torch.autograd.grad(y, leaves, grad) for y in (out, peer)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_explain_tells_the_way_of_each_product():
    x, weight = torch.rand(1, 64, 65, 65), torch.rand(64, 64, 3, 3)
    text = segops.explain("atrous_conv2d", x, weight, dilation=36)
    assert "gradient of weight: skips the padding" in text
    assert "forward: torch's convolution" in segops.explain("atrous_conv2d", x, weight, stride=2, padding=1)


X, W, B = torch.rand(2, 4, 5, 6), torch.rand(6, 4, 3, 3), torch.rand(6)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X[0], W), {}, ValueError, r"input: expected 4 dimensions \(N, C, H, W\), got shape \(4, 5, 6\)"),
        ((X.numpy(), W), {}, TypeError, "input: expected a tensor .* got ndarray"),
        ((X.long(), W), {}, TypeError, "input: expected float64, .* got torch.int64"),
        ((X.to_sparse(), W), {}, TypeError, "input: expected a dense tensor"),
        ((X, W[0]), {}, ValueError, r"weight: expected 4 dimensions .* got shape \(4, 3, 3\)"),
        ((X, W[:, :3]), {}, ValueError, r"weight: expected shape \(K, 4, kh, kw\) .* got \(6, 3, 3, 3\)"),
        ((X, W[..., :0]), {}, ValueError, r"weight: expected shape \(K, 4, kh, kw\) .* got \(6, 4, 3, 0\)"),
        ((X, W.double()), {}, TypeError, "weight: expected torch.float32 like input, got torch.float64"),
        ((X, W.to("meta")), {}, ValueError, "weight: expected device cpu like input, got meta"),
        ((X, W, B[:5]), {}, ValueError, r"bias: expected shape \(6,\) to go with weight, got \(5,\)"),
        ((X, W, B[None]), {}, ValueError, r"bias: expected 1 dimensions \(K,\), got shape \(1, 6\)"),
        ((X, W), {"groups": 4}, ValueError, "groups: expected a divisor of 4 input and 6 output channels, got 4"),
        ((X, W), {"groups": 0}, ValueError, "groups: expected an integer >= 1, got 0"),
        ((X, W), {"dilation": 0}, ValueError, "dilation: expected integers >= 1, got 0"),
        ((X, W), {"dilation": 1.5}, TypeError, "dilation: expected an integer, got float"),
        ((X, W), {"dilation": (1, 2, 3)}, ValueError, "dilation: expected one integer or two, got 3"),
        ((X, W), {"stride": 2}, ValueError, "padding: expected numbers, since 'same' asks for stride 1, got stride 2"),
        ((X, W), {"stride": 0, "padding": 1}, ValueError, "stride: expected integers >= 1, got 0"),
        ((X, W), {"padding": -1}, ValueError, "padding: expected integers >= 0, got -1"),
        ((X, W), {"padding": "valid"}, ValueError, "padding: expected one of 'same', got 'valid'"),
        (
            (X, W),
            {"padding": 0, "dilation": 3},
            ValueError,
            "weight: expected a kernel that fits .* of 5 rows; .* over 7",
        ),
    ],
)
def test_bad_arguments(args, options, error, message):
    with pytest.raises(error, match=message):
        segops.atrous_conv2d(*args, **options)
