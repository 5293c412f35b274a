"""segops.nonlocal_attention: golden cases, plain softmax, blocks of every size, huge energies, halves, bad input."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.testing import assert_gradients_match

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "nonlocal_attention.npz")
WAYS = {
    "embedded_scale": lambda d: {"scale": d**-0.5},
    "embedded_noscale": lambda d: {},
    "dot": lambda d: {"mode": "dot_product"},
}


def inputs(n, d, c, queries, keys, dtype=torch.float64):
    shapes = (n, d, queries), (n, d, keys), (n, c, keys)
    return [torch.randn(*shape, dtype=torch.float64).to(dtype) for shape in shapes]


def plain(query, key, value, *, mode="gaussian", scale=1.0):
    """All pairs in memory."""
    energies = scale * query.mT @ key
    weights = energies / key.shape[2] if mode == "dot_product" else energies.softmax(2)
    return value @ weights.mT


def with_gradients(function, tensors, grad, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves, **options)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def conditions(tensors, grad, expected, mode, scale):
    """How much larger than each result the terms are that it is the sum of: a softmax that is nearly all on one key
    has gradients of energies that all but cancel, in any float32."""
    query, key, value = tensors
    if mode == "dot_product":
        return [1.0] * 4
    weights = (scale * query.mT @ key).softmax(2)
    terms = grad.abs().mT @ value.abs()
    energies = weights * (terms + (weights * terms).sum(2, keepdim=True))
    query_terms, key_terms = scale * key.abs() @ energies.mT, scale * query.abs() @ energies
    return [1.0, float(query_terms.norm() / expected[1].norm()), float(key_terms.norm() / expected[2].norm()), 1.0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["a", "b"])
def test_golden(case, way):
    *tensors, grad = (torch.from_numpy(GOLDEN[f"{case}_{name}"]) for name in ("theta", "phi", "g", "gout"))
    actual = with_gradients(segops.nonlocal_attention, tensors, grad, **WAYS[way](tensors[0].shape[1]))
    for a, name in zip(actual, ("out", "dtheta", "dphi", "dg"), strict=True):
        expected = torch.from_numpy(GOLDEN[f"{case}_{way}_{name}"])
        torch.testing.assert_close(a, expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()), msg=f"{way} {name}")


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    d=st.integers(1, 40),
    c=st.integers(1, 40),
    queries=st.integers(1, 120),
    keys=st.integers(2, 120),
    mode=st.sampled_from(["embedded_gaussian", "gaussian", "dot_product"]),
    single=st.booleans(),
)
def test_equals_all_pairs(n, d, c, queries, keys, mode, single):
    tensors = inputs(n, d, c, queries, keys)
    grad = torch.randn(n, c, queries, dtype=torch.float64)
    expected = with_gradients(plain, tensors, grad, mode=mode, scale=0.6)
    dtype, eps = (torch.float32, 5e-6) if single else (torch.float64, 1e-11)
    condition = conditions(tensors, grad, expected, mode, 0.6)
    tensors = [x.to(dtype) for x in tensors]
    actual = with_gradients(segops.nonlocal_attention, tensors, grad.to(dtype), mode=mode, scale=0.6)
    for a, b, factor, name in zip(actual, expected, condition, ("out", "query", "key", "value"), strict=True):
        assert_gradients_match(a, b, eps * factor, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("queries", [96, 97, 300])
@pytest.mark.parametrize("keys", [95, 191, 192, 193, 385])
def test_blocks_of_queries_and_keys(queries, keys, dtype):
    """Sizes at which tiles, blocks and vectors end early, more than one of each; channels past a cache's share."""
    tensors, grad = inputs(1, 130, 33, queries, keys), torch.randn(1, 33, queries, dtype=torch.float64)
    expected = with_gradients(plain, tensors, grad, scale=0.1)
    tensors = [x.to(dtype) for x in tensors]
    actual = with_gradients(segops.nonlocal_attention, tensors, grad.to(dtype), scale=0.1)
    for a, b, name in zip(actual, expected, ("out", "query", "key", "value"), strict=True):
        assert_gradients_match(a, b, 2e-5 if dtype == torch.float32 else 1e-11, name)


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
def test_pixels_in_any_order(mode):
    query, key, value = inputs(2, 5, 7, 60, 45)
    p, k = torch.randperm(60), torch.randperm(45)
    out = segops.nonlocal_attention(query[..., p], key[..., k], value[..., k], mode=mode)
    torch.testing.assert_close(out, segops.nonlocal_attention(query, key, value, mode=mode)[..., p])


def test_maps_and_lists_of_positions_are_the_same():
    query, key, value = inputs(2, 4, 3, 42, 20, torch.float32)
    out = segops.nonlocal_attention(query.view(2, 4, 6, 7), key.view(2, 4, 4, 5), value.view(2, 3, 4, 5))
    assert out.shape == (2, 3, 6, 7)
    assert torch.equal(out.flatten(2), segops.nonlocal_attention(query, key, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e2, -1e2, 1e4, 1e30])
def test_huge_energies(scale, dtype):
    """The softmax becomes a maximum, in whatever block of keys it lies."""
    query, key, value = inputs(1, 1, 3, 20, 400, dtype)
    query, key = query.sign(), torch.linspace(-1, 1, 400, dtype=dtype)[torch.randperm(400)].view(1, 1, 400)
    out, *gradients = with_gradients(
        segops.nonlocal_attention, (query, key, value), torch.ones(1, 3, 20, dtype=dtype), scale=scale
    )
    assert all(x.isfinite().all() for x in (out, *gradients))
    torch.testing.assert_close(out, plain(query, key, value, scale=scale), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_has_all_the_weight(dtype):
    query, key, value = inputs(2, 3, 141, 130, 1, dtype)
    grad = torch.randn(2, 141, 130).to(dtype)
    out, *gradients = with_gradients(segops.nonlocal_attention, (query, key, value), grad)
    assert torch.equal(out, value.expand_as(out))
    assert not gradients[0].any()  # the weight is 1 whatever the energy, and nothing of it is left by rounding
    assert not gradients[1].any()
    torch.testing.assert_close(gradients[2], grad.sum(2, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_not_a_number_stays_with_its_queries(bad, dtype):
    query, key, value = inputs(2, 3, 4, 120, 50, dtype)
    query[0, 1, 7] = bad
    out = segops.nonlocal_attention(query, key, value)
    assert out[0, :, 7].isnan().all()
    assert int(out.isnan().sum()) == 4
    key[1, 0, 3] = torch.nan
    assert segops.nonlocal_attention(query, key, value)[1].isnan().all()


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
@pytest.mark.parametrize("sizes", [(20, 12, 150, 300), (133, 5, 35, 201)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, sizes, mode):
    tensors, grad = inputs(1, *sizes, dtype), torch.randn(1, sizes[1], sizes[2]).to(dtype)
    scale = 1.5 * sizes[0] ** -0.5
    wide = [x.double() for x in tensors]
    expected = with_gradients(plain, wide, grad.double(), mode=mode, scale=scale)
    actual = with_gradients(segops.nonlocal_attention, tensors, grad, mode=mode, scale=scale)
    for a, b, name in zip(actual, expected, ("out", "query", "key", "value"), strict=True):
        assert a.dtype == dtype
        assert_gradients_match(a, b, 2 * torch.finfo(dtype).eps, name)


def test_dot_product_of_halves_does_not_overflow():
    """The sum over all keys is past the largest float16, their mean is not."""
    query, key, value = torch.ones(1, 1, 2), torch.full((1, 1, 4000), 8.0), torch.full((1, 1, 4000), 8.0)
    out = segops.nonlocal_attention(*(x.half() for x in (query, key, value)), mode="dot_product")
    torch.testing.assert_close(out, torch.full((1, 1, 2), 64.0).half())


def test_dot_product_has_second_derivatives():
    tensors = [x.requires_grad_() for x in inputs(1, 2, 3, 5, 4)]
    torch.autograd.gradgradcheck(lambda *x: segops.nonlocal_attention(*x, mode="dot_product"), tensors)


def test_the_same_twice_and_near_on_any_number_of_threads():
    tensors, grad = inputs(3, 16, 24, 500, 300, torch.float32), torch.randn(3, 24, 500)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2, 3, 5):
            torch.set_num_threads(n)
            results.append(with_gradients(segops.nonlocal_attention, tensors, grad, scale=0.2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])  # only sums over queries have an order that threads change
        assert torch.equal(other[1], results[0][1])
        for a, b in zip(other[2:], results[0][2:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def resident(key: str) -> int:
    """Bytes of VmRSS, what the process holds now, or VmHWM, the most that it held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status).group(1)) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells no peak")
@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
def test_no_matrix_of_all_pairs_in_memory(mode):
    """One would take 576 MB here."""
    tensors = inputs(1, 4, 4, 12000, 12000, torch.float32)
    with_gradients(segops.nonlocal_attention, [x[..., :50] for x in tensors], torch.ones(1, 4, 50), mode=mode)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    with_gradients(segops.nonlocal_attention, tensors, torch.ones(1, 4, 12000), mode=mode)
    assert resident("VmHWM") - before < 60e6


@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product"])
def test_empty_batch(mode):
    tensors = inputs(0, 3, 4, 7, 6, torch.float32)
    out, *gradients = with_gradients(segops.nonlocal_attention, tensors, torch.ones(0, 4, 7), mode=mode)
    assert out.shape == (0, 4, 7)
    assert [g.shape for g in gradients] == [x.shape for x in tensors]


@pytest.mark.parametrize("dynamic", [False, True])
def test_dot_product_compiles_whole(dynamic):
    def function(*x):
        return segops.nonlocal_attention(*x, mode="dot_product", scale=0.5)

    tensors = inputs(2, 3, 4, 30, 20, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(*tensors), function(*tensors))


X = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("query", "key", "value", "options", "error", "message"),
    [
        ([1.0], X, X, {}, TypeError, r"query: expected a tensor \(N, C, H, W\) or \(N, C, P\), got list"),
        (X[0, 0], X, X, {}, ValueError, r"query: expected 4 dimensions .*, got shape \(4, 5\)"),
        (X, X.to_sparse(), X, {}, TypeError, "key: expected a dense tensor, got layout torch.sparse_coo"),
        (X.int(), X, X, {}, TypeError, "query: expected float64, .* got torch.int32"),
        (X, X.double(), X, {}, TypeError, "key: expected torch.float32 like query, got torch.float64"),
        (X, X, X.bfloat16(), {}, TypeError, "value: expected torch.float32 like query, got torch.bfloat16"),
        (X, X.to("meta"), X, {}, ValueError, "key: expected device cpu like query, got meta"),
        (X, X[:, :2], X, {}, ValueError, r"key: expected shape \(2, 3, ...\) to go with query, got \(2, 2, 4, 5\)"),
        (X, X[:1], X, {}, ValueError, r"key: expected shape \(2, 3, ...\) to go with query, got \(1, 3, 4, 5\)"),
        (X, X, X.mT, {}, ValueError, r"value: expected shape \(2, C, 4, 5\) to go with key, got \(2, 3, 5, 4\)"),
        (X, X, X[:1], {}, ValueError, r"value: expected shape \(2, C, 4, 5\) to go with key, got \(1, 3, 4, 5\)"),
        (X[:, :0], X[:, :0], X, {}, ValueError, r"query: expected at least one channel and one pixel"),
        (X, X[..., :0], X, {}, ValueError, r"key: expected at least one channel and one pixel"),
        (X, X, X, {"mode": "softmax"}, ValueError, "mode: expected one of 'embedded_gaussian', .*, got 'softmax'"),
        (X, X, X, {"scale": "1"}, TypeError, "scale: expected a number, got str"),
        (X, X, X, {"scale": torch.inf}, ValueError, "scale: expected a finite number, got inf"),
        (X, X, X, {"mode": "concatenation"}, ValueError, "query: expected one channel for mode 'concatenation'"),
        (X, X, X, {"mode": "concatenation", "scale": 2.0}, ValueError, "scale: expected None for mode 'concat"),
    ],
)
def test_bad_arguments(query, key, value, options, error, message):
    with pytest.raises(error, match=message):
        segops.nonlocal_attention(query, key, value, **options)
