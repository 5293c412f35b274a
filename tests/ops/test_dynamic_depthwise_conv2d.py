"""segops.dynamic_depthwise_conv2d: equal to conv2d in groups, in both layouts; symmetries; bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.testing import poisoned_memory

LAYOUTS = {"planes": torch.contiguous_format, "cells": torch.channels_last}


def by_groups(x: torch.Tensor, kernels: torch.Tensor, dilation: tuple[int, int]) -> torch.Tensor:
    """conv2d with a group for each channel of each image; padded by hand, since conv2d refuses what is too large."""
    n, c, h, w = x.shape
    pad = [d * (k // 2) for d, k in zip(dilation, kernels.shape[-2:], strict=True)]
    padded = F.pad(x, (pad[1], pad[1], pad[0], pad[0])).reshape(1, n * c, h + 2 * pad[0], w + 2 * pad[1])
    weight = kernels.expand(n, *kernels.shape[-3:]).reshape(n * c, 1, *kernels.shape[-2:])
    return F.conv2d(padded, weight, dilation=dilation, groups=n * c).view(x.shape)


def random(n: int, c: int, h: int, w: int, kernel: tuple[int, int], shared: bool, layout: str, dtype=torch.float64):
    x = torch.randn(n, c, h, w, dtype=dtype).to(memory_format=LAYOUTS[layout])
    return x.requires_grad_(), torch.randn(1 if shared else n, c, *kernel, dtype=dtype).requires_grad_()


odd = st.integers(0, 3).map(lambda i: 2 * i + 1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 70),
    h=st.integers(1, 20),
    w=st.integers(1, 40),
    kernel=st.tuples(odd, odd),
    dilation=st.tuples(st.integers(1, 24), st.integers(1, 45)),
    shared=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_sizes_agree_with_conv2d(n, c, h, w, kernel, dilation, shared, layout, dtype):
    torch.manual_seed(c)
    x, kernels = random(n, c, h, w, kernel, shared, layout, dtype)
    out = segops.dynamic_depthwise_conv2d(x, kernels, dilation=dilation)
    direction = torch.randn_like(out)
    exact = [t.detach().double().requires_grad_() for t in (x, kernels)]
    wanted = by_groups(*exact, dilation)
    eps = 1e-10 if dtype == torch.float64 else 1e-5
    pairs = [(out, wanted)]
    pairs += zip(
        torch.autograd.grad(out, (x, kernels), direction),
        torch.autograd.grad(wanted, exact, direction.double()),
        strict=True,
    )
    for actual, expected in pairs:
        assert (actual.double() - expected).norm() <= eps * expected.norm() + 1e-30


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rate", [6, 12, 24, 36, 65, 1 << 40])
def test_rates_of_segmentation(layout, rate):
    """Several blocks of channels and several threads; from 65 on, only the middle tap touches the map."""
    x, kernels = random(1, 300, 65, 65, (3, 3), True, layout, torch.float32)
    out = segops.dynamic_depthwise_conv2d(x, kernels[0], dilation=rate)
    expected = by_groups(x.double(), kernels.double(), (min(rate, 65),) * 2)
    assert (out.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("channels", [1, 5, 16, 40, 64])
def test_the_layout_of_the_input_is_that_of_the_output(channels):
    for layout in LAYOUTS:
        x, kernels = random(2, channels, 7, 9, (3, 3), False, layout, torch.float32)
        with poisoned_memory():
            out = segops.dynamic_depthwise_conv2d(x, kernels, dilation=2)
        assert out.is_contiguous(memory_format=LAYOUTS[layout])
        assert out.isfinite().all()


def test_the_gradient_may_come_in_another_layout():
    x, kernels = random(2, 20, 9, 11, (3, 3), True, "cells")
    out = segops.dynamic_depthwise_conv2d(x, kernels, dilation=3)
    direction = torch.randn_like(out)
    mixed = torch.autograd.grad(out, (x, kernels), direction.contiguous(), retain_graph=True)
    for a, b in zip(mixed, torch.autograd.grad(out, (x, kernels), direction), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_gradients():
    x, kernels = random(2, 2, 4, 5, (3, 1), False, "planes")

    def function(x, kernels):
        return segops.dynamic_depthwise_conv2d(x, kernels, dilation=(2, 1))

    assert torch.autograd.gradgradcheck(function, (x, kernels))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_gradient_that_is_wanted(wanted):
    inputs = [t.detach() for t in random(2, 3, 6, 7, (3, 3), False, "planes")]
    inputs[wanted].requires_grad_()
    segops.dynamic_depthwise_conv2d(*inputs).sum().backward()
    assert inputs[wanted].grad is not None and inputs[1 - wanted].grad is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_middle_tap_alone_is_a_scale(layout):
    x, _ = random(2, 20, 9, 33, (1, 1), True, layout)
    kernels = torch.zeros(20, 3, 3, dtype=torch.float64)
    kernels[:, 1, 1] = torch.arange(20)
    out = segops.dynamic_depthwise_conv2d(x, kernels, dilation=5)
    assert torch.equal(out, x * torch.arange(20).view(-1, 1, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_reaches_its_taps_and_no_others(layout):
    x = torch.zeros(1, 20, 9, 40).to(memory_format=LAYOUTS[layout])
    x[0, 3, 4, 20] = float("nan")
    out = segops.dynamic_depthwise_conv2d(x, torch.ones(20, 3, 3), dilation=(2, 11))
    assert out[0, 3, 2:7:2, 9:32:11].isnan().all() and out.isnan().sum() == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    x, kernels = torch.randn(2, 20, 9, 17, dtype=dtype), torch.randn(2, 20, 5, 5, dtype=dtype)
    out = segops.dynamic_depthwise_conv2d(x, kernels)
    assert out.dtype == dtype
    expected = by_groups(x.double(), kernels.double(), (1, 1))
    assert (out.double() - expected).norm() <= torch.finfo(dtype).eps * expected.norm()


def test_kernels_on_triton_take_channels_last_too():
    pytest.importorskip("triton")
    x, kernels = random(2, 5, 9, 11, (3, 3), False, "cells")
    out = segops.dynamic_depthwise_conv2d(x, kernels, dilation=3)
    with segops.backend("triton"):
        actual = segops.dynamic_depthwise_conv2d(x, kernels, dilation=3)
    assert actual.stride() == out.stride()
    torch.testing.assert_close(actual, out)


X, K = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None, K), TypeError, "input: expected a tensor"),
        ((X[0], K), ValueError, "input: expected 4 dimensions"),
        ((X.long(), K), TypeError, "input: expected float64"),
        ((X[:, :0], K[:, :0]), ValueError, "input: expected at least one channel"),
        ((X.to_sparse(), K), TypeError, "input: expected a dense tensor"),
        ((X, [1]), TypeError, "kernels: expected a tensor"),
        ((X, K.int()), TypeError, "kernels: expected float64"),
        ((X, K[0, 0]), ValueError, r"kernels: expected shape \(2 or 1, 3, kh, kw\)"),
        ((X, K[:, :2]), ValueError, r"kernels: expected shape \(2 or 1, 3, kh, kw\)"),
        ((X, K.repeat(2, 1, 1, 1)), ValueError, r"kernels: expected shape \(2 or 1, 3, kh, kw\)"),
        ((X, K[..., :2]), ValueError, "kernels: expected an odd height and width"),
        ((X, K[..., :0]), ValueError, "kernels: expected an odd height and width"),
        ((X, K.to("meta")), ValueError, "kernels: expected device cpu like input"),
        ((X, K, 0), ValueError, "dilation: expected integers >= 1"),
        ((X, K, (1, -1)), ValueError, "dilation: expected integers >= 1"),
        ((X, K, (1, 2, 3)), ValueError, "dilation: expected one integer or two"),
        ((X, K, 1.5), TypeError, "dilation: expected an integer"),
        ((X, K, "12"), TypeError, "dilation: expected an integer"),
    ],
)
def test_bad_input_is_named(args, error, message):
    with pytest.raises(error, match=message):
        segops.dynamic_depthwise_conv2d(*args[:2], **({"dilation": args[2]} if len(args) > 2 else {}))
