"""segops.nonlocal_concatenation: golden values, properties of the sum, ties, large maps, huge and bad input."""

from __future__ import annotations

import math

import golden_crf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference.nonlocal_concatenation import nonlocal_concatenation as oracle
from segops.testing import assert_as_good_as, assert_gradients_match

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("nonlocal_concatenation").items()}


def random(n: int, channels: int, queries: int, keys: int, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(*shape, dtype=dtype) for shape in ((n, queries), (n, keys), (n, channels, keys)))


def with_gradients(function, *inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return out.detach(), torch.autograd.grad(out, leaves, direction.to(out))


@pytest.mark.parametrize("case", ["concatenation", "concatenation_sub"])
def test_golden(case):
    """The whole block of the peer, subsampled or not; the two halves of concat_project make the scores."""
    weights = {k.split("__")[1]: v for k, v in GOLDEN.items() if k.startswith(f"mod_{case}__")}
    x = GOLDEN["mod_x"]

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        prefix = next(k for k in weights if k.startswith(name)).rsplit(".", 1)[0]
        y = torch.nn.functional.conv2d(x, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])
        return torch.nn.functional.max_pool2d(y, 2) if case.endswith("_sub") and name in ("phi", "g") else y

    half_query, half_key = weights["concat_project.conv.weight"].flatten().chunk(2)
    query = torch.einsum("c,ncp->np", half_query, conv("theta", x).flatten(2))
    key = torch.einsum("c,ncp->np", half_key, conv("phi", x).flatten(2))
    y = segops.nonlocal_concatenation(query, key, conv("g", x).flatten(2))
    out = x + conv("conv_out", y.view(2, 3, 6, 7))
    torch.testing.assert_close(out, GOLDEN[f"mod_{case}_out"], rtol=1e-5, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    queries=st.integers(1, 90),
    keys=st.integers(1, 90),
    ties=st.booleans(),
)
def test_any_shape(batch, channels, queries, keys, ties):
    """With ties, scores are whole numbers: many sums are exactly 0, where the gradient is 0."""
    query, key, value = random(batch, channels, queries, keys)
    if ties:
        query, key = (2 * query).round(), (2 * key).round()
    out, gradients = with_gradients(segops.nonlocal_concatenation, query, key, value)
    expected, oracles = with_gradients(oracle, query, key, value)
    for a, b in zip((out, *gradients), (expected, *oracles), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_large_maps_lose_no_digits(offset):
    """No more than eager does; not by cancellation either, where scores are large and their sums are not."""
    query, key, value = random(1, 24, 4000, 4000, torch.float32)
    inputs = query + offset, key - offset, value
    out, gradients = with_gradients(segops.nonlocal_concatenation, *inputs)
    eager, eager_gradients = with_gradients(oracle, *inputs)
    exact, exact_gradients = with_gradients(oracle, *(x.double() for x in inputs))
    for a, e, b in zip((out, *gradients), (eager, *eager_gradients), (exact, *exact_gradients), strict=True):
        assert_as_good_as(a, e, b)


def test_long_walks_through_the_radix_sort():
    query, key, value = random(2, 9, 3000, 700)
    out, gradients = with_gradients(segops.nonlocal_concatenation, query, key, value)
    expected, oracles = with_gradients(oracle, query, key, value)
    for a, b in zip((out, *gradients), (expected, *oracles), strict=True):
        assert_gradients_match(a, b, 1e-11)


def test_half_of_the_gradients_at_negative_zero():
    """-0 and 0 are the same score: a sum of 0 has no gradient, in whichever sign its parts come."""
    zeros = torch.tensor([[0.0, -0.0]])
    out, gradients = with_gradients(segops.nonlocal_concatenation, zeros, zeros, torch.ones(1, 2, 2))
    assert not any(x.any() for x in (out, *gradients))


def test_linear_in_values_and_of_degree_one_in_scores():
    query, key, value = random(2, 5, 30, 40)
    out = segops.nonlocal_concatenation(query, key, value)
    torch.testing.assert_close(segops.nonlocal_concatenation(3 * query, 3 * key, 2 * value), 6 * out)
    torch.testing.assert_close(segops.nonlocal_concatenation(query + 7, key - 7, value), out)
    assert not segops.nonlocal_concatenation(query - 100, key, value).any()  # no key takes part
    everyone = (query[:, None] + 100) * value.mean(2, keepdim=True) + (value * key[:, None]).mean(2, keepdim=True)
    torch.testing.assert_close(segops.nonlocal_concatenation(query + 100, key, value), everyone)


def test_permuting_positions_permutes_results():
    query, key, value = random(1, 5, 30, 40)
    out = segops.nonlocal_concatenation(query, key, value)
    i, j = torch.randperm(30), torch.randperm(40)
    torch.testing.assert_close(segops.nonlocal_concatenation(query[:, i], key[:, j], value[..., j]), out[..., i])


def test_scores_that_are_not_numbers_or_infinite():
    query, key, value = random(3, 4, 20, 30, torch.float32)
    query[0, 3], key[1, 5] = math.nan, math.nan
    out = segops.nonlocal_concatenation(query, key, value)
    assert out[0, :, 3].isnan().all() and out[0].isfinite().sum() == 4 * 19
    assert out[1].isnan().all() and out[2].isfinite().all()
    query[0, 3], key[1, 5] = math.inf, -math.inf
    out = segops.nonlocal_concatenation(query, key, value)
    finite = [i for i in range(20) if i != 3]
    torch.testing.assert_close(out[..., finite], oracle(query, key, value)[..., finite])
    assert out[0, :, 3].isinf().all()  # plain PyTorch adds infinities of both signs


def test_a_value_that_is_not_a_number_stays_where_it_takes_part():
    query, key, value = random(1, 20, 30, 40, torch.float32)
    value[0, 6, 11] = math.nan
    out = segops.nonlocal_concatenation(query, key, value)
    assert torch.equal(out[0, 6].isnan(), query[0] + key[0, 11] > 0)
    assert out[0, [c for c in range(20) if c != 6]].isfinite().all()


def test_half_precision_is_computed_in_float32():
    inputs = [x.bfloat16() for x in random(2, 8, 40, 30)]
    out = segops.nonlocal_concatenation(*inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, segops.nonlocal_concatenation(*(x.float() for x in inputs)).bfloat16())


Q, K, V = torch.rand(2, 5), torch.rand(2, 6), torch.rand(2, 3, 6)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((Q[0], K, V), ValueError, r"query_score: expected 2 dimensions \(N, Q\), got shape \(5,\)"),
        ((Q.numpy(), K, V), TypeError, "query_score: expected a tensor .* got ndarray"),
        ((Q.long(), K, V), TypeError, "query_score: expected float64, .* got torch.int64"),
        ((Q[:, :0], K, V), ValueError, r"query_score: expected at least one position, got shape \(2, 0\)"),
        ((Q, K[:, :0], V), ValueError, r"key_score: expected at least one position, got shape \(2, 0\)"),
        ((Q[:1], K, V), ValueError, r"query_score: expected shape \(2, Q\) .* got \(1, 5\)"),
        ((Q, K.double(), V), TypeError, "key_score: expected torch.float32 like query_score, got torch.float64"),
        ((Q, K, V.to_sparse()), TypeError, "value: expected a dense tensor"),
        ((Q, K, V[..., 1:]), ValueError, r"value: expected shape \(2, C, 6\) with C >= 1 .* got \(2, 3, 5\)"),
        ((Q, K, V[:, :0]), ValueError, r"value: expected shape \(2, C, 6\) with C >= 1 .* got \(2, 0, 6\)"),
        ((Q, K, V.to("meta")), ValueError, "value: expected device cpu like query_score, got meta"),
    ],
)
def test_bad_arguments(args, error, message):
    with pytest.raises(error, match=message):
        segops.nonlocal_concatenation(*args)
