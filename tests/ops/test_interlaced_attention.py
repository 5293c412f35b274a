"""segops.interlaced_attention: golden cases, dense attention with a mask, both relations together, bad input."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from halves import assert_summed_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

import segops
from segops.reference.interlaced_attention import padding
from segops.testing import assert_gradients_match

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "interlaced_attention.npz")
RELATIONS = ("global", "local")


def inputs(n, d, c, height, width, dtype=torch.float64):
    query, key = torch.randn(2, n, d, height, width, dtype=dtype)
    return query, key, torch.randn(n, c, height, width, dtype=dtype)


def group_of_pixels(size: int, factor: int, relation: str) -> torch.Tensor:
    """Along one side, in the words of the paper; blocks begin where published code's padding puts them."""
    at = torch.arange(size) + padding(size, factor)[0]
    return at % factor if relation == "global" else at // factor


def dense(query, key, value, factors, relation, scale):
    """Attention of every pixel to every other, those of other groups masked."""
    height, width = query.shape[2:]
    y, x = (group_of_pixels(*each, relation) for each in zip((height, width), factors, strict=True))
    y, x = y.repeat_interleave(width), x.repeat(height)
    seen = (y[:, None] == y) & (x[:, None] == x)
    weights = (scale * query.flatten(2).mT @ key.flatten(2)).masked_fill(~seen, -torch.inf).softmax(-1)
    return (value.flatten(2) @ weights.mT).view(value.shape)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", ["a", "b"])
def test_golden(case, backend):
    """Both relations, the padding a part of the map."""
    query, key, value, grad = (torch.from_numpy(GOLDEN[f"{case}_{n}"]) for n in ("theta", "phi", "g", "gout"))
    tensors = [x.requires_grad_() for x in (query, key, value)]
    height, width = query.shape[2:]
    (top, bottom), (left, right) = padding(height, 8), padding(width, 8)
    q, k, v = (pad(x, (left, right, top, bottom)) for x in tensors)
    with segops.backend(backend):
        v = segops.interlaced_attention(q, k, v, relation="global")
        v = segops.interlaced_attention(q, k, v, relation="local")
        out = v[:, :, top : top + height, left : left + width]
        results = (out, *torch.autograd.grad(out, tensors, grad))
    for a, name in zip(results, ("out", "dtheta", "dphi", "dg"), strict=True):
        b = torch.from_numpy(GOLDEN[f"{case}_{name}"])
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * float(b.abs().max()), msg=f"{case} {name}")


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 2),
    d=st.integers(1, 40),
    c=st.integers(1, 70),
    height=st.integers(1, 30),
    width=st.integers(1, 80),
    rows=st.integers(1, 10),
    columns=st.integers(1, 20),
    relation=st.sampled_from(RELATIONS),
    single=st.booleans(),
)
def test_equals_dense_attention_with_a_mask(n, d, c, height, width, rows, columns, relation, single):
    torch.manual_seed(height * width)
    tensors = [x.requires_grad_() for x in inputs(n, d, c, height, width)]
    expected = dense(*tensors, (rows, columns), relation, d**-0.5)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, grad)
    dtype = torch.float32 if single else torch.float64
    cast = [x.detach().to(dtype).requires_grad_() for x in tensors]
    out = segops.interlaced_attention(*cast, relation=relation, down_factor=(rows, columns))
    eps = 2e-5 if single else 1e-11
    assert_gradients_match(out.detach(), expected.detach(), eps, "out")
    for a, b, name in zip(torch.autograd.grad(out, cast, grad.to(dtype)), wanted, "qkv", strict=True):
        if name == "v" or b.norm() > 1e-12 * wanted[2].norm():  # a group of one has no other gradients than rounding
            floor = 1e-7 if single else 1e-15
            assert float((a.double() - b).norm()) <= eps * float(b.norm()) + floor * float(wanted[2].norm()), name


def test_a_block_as_large_as_the_map_is_plain_attention():
    query, key, value = inputs(2, 5, 3, 6, 7)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.flatten(2).mT[:, None] for x in (query, key, value))
    )[:, 0].mT.view(value.shape)
    for relation, factor in (("local", (6, 7)), ("local", 9), ("global", 1)):
        out = segops.interlaced_attention(query, key, value, relation=relation, down_factor=factor)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_groups_of_one_pixel_give_the_value():
    query, key, value = inputs(1, 3, 4, 6, 5)
    for relation, factor in (("local", 1), ("global", 6), ("global", 10**12)):
        out = segops.interlaced_attention(query, key, value, relation=relation, down_factor=factor)
        assert torch.equal(out, value)


def test_both_relations_see_every_pixel():
    query, key, value = inputs(1, 3, 2, 12, 15)
    value.requires_grad_()
    once = segops.interlaced_attention(query, key, value, relation="global", down_factor=(4, 3))
    assert int((torch.autograd.grad(once[0, 0, 5, 7], value)[0][0, 0] != 0).sum()) == (12 // 4) * (15 // 3)
    once = segops.interlaced_attention(query, key, value, relation="global", down_factor=(4, 3))
    both = segops.interlaced_attention(query, key, once, relation="local", down_factor=(4, 3))
    assert int((torch.autograd.grad(both[0, 0, 5, 7], value)[0][0, 0] != 0).sum()) == 12 * 15


def test_scale():
    query, key, value = inputs(2, 9, 3, 7, 6)
    plain = segops.interlaced_attention(query, key, value, relation="local", down_factor=4)
    scaled = segops.interlaced_attention(query / 3, key, value, relation="local", down_factor=4, scale=1.0)
    torch.testing.assert_close(plain, scaled, rtol=1e-12, atol=1e-12)
    even = segops.interlaced_attention(query, key, value, relation="global", down_factor=(7, 3), scale=0.0)
    torch.testing.assert_close(even[..., :3], (value[..., :3] + value[..., 3:]) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_huge_energies(dtype):
    """exp() of them is infinite, or all but one are 0."""
    query, key, value = (x.to(dtype) for x in inputs(1, 4, 5, 9, 8))
    out = segops.interlaced_attention(1e4 * query, key, value, relation="local", down_factor=4)
    assert torch.isfinite(out).all()
    wide = [x.double() for x in (1e4 * query, key, value)]
    torch.testing.assert_close(out.double(), dense(*wide, (4, 4), "local", 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relation", RELATIONS)
def test_not_a_number_stays_in_its_group(relation, dtype):
    query, key, value = inputs(1, 3, 2, 8, 24, dtype)
    key[0, 1, 3, 5] = torch.nan
    out = segops.interlaced_attention(query, key, value, relation=relation, down_factor=(4, 3))
    y, x = group_of_pixels(8, 4, relation), group_of_pixels(24, 3, relation)
    bad = (y[:, None] == y[3]) & (x[None, :] == x[5])
    assert out[0, :, bad].isnan().all() and out[0, :, ~bad].isfinite().all()


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("sizes", [(1, 4, 6, 9, 8), (2, 5, 67, 17, 35), (1, 65, 3, 26, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, sizes, relation):
    attend = partial(segops.interlaced_attention, relation=relation, down_factor=3)
    assert_summed_in_float32(attend, *inputs(*sizes, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_has_all_the_weight(dtype):
    """In groups of one pixel: what the softmax takes off its gradient cancels it."""
    leaves = [x.requires_grad_() for x in inputs(2, 3, 141, 4, 5, dtype)]
    out, grad = segops.interlaced_attention(*leaves, relation="local", down_factor=1), torch.randn_like(leaves[2])
    gradients = torch.autograd.grad(out, leaves, grad)
    assert torch.equal(out, leaves[2])
    assert not gradients[0].any()
    assert not gradients[1].any()
    torch.testing.assert_close(gradients[2], grad)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_same_on_any_number_of_threads(relation):
    tensors = [x.requires_grad_() for x in inputs(2, 8, 40, 33, 75, torch.float32)]
    threads, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            out = segops.interlaced_attention(*tensors, relation=relation)
            outs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    finally:
        torch.set_num_threads(threads)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, outs[0], strict=True))


@pytest.mark.parametrize("relation", RELATIONS)
def test_empty(relation):
    for shape in ((0, 2, 4, 5), (2, 2, 0, 5), (2, 2, 4, 0)):
        x = torch.rand(shape, requires_grad=True)
        out = segops.interlaced_attention(x, x, x, relation=relation)
        assert out.shape == shape
        assert torch.autograd.grad(out.sum(), x)[0].shape == shape


X = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("query", "key", "value", "error", "message"),
    [
        ([1.0], X, X, TypeError, r"query: expected a tensor \(N, D, H, W\), got list"),
        (X, X.to_sparse(), X, TypeError, "key: expected a dense tensor, got layout torch.sparse_coo"),
        (X.int(), X, X, TypeError, "query: expected float64, .* got torch.int32"),
        (X, X, X.bfloat16(), TypeError, "value: expected torch.float32 like query, got torch.bfloat16"),
        (X, X, X.to("meta"), ValueError, "value: expected device cpu like query, got meta"),
        (X, X[:, :2], X, ValueError, r"key: expected shape \(2, 3, 4, 5\) like query, got \(2, 2, 4, 5\)"),
        (X, X, X.mT, ValueError, r"value: expected shape \(2, C, 4, 5\) to go with query, got \(2, 3, 5, 4\)"),
        (X, X, X[:, :0], ValueError, r"value: expected at least one channel, got shape \(2, 0, 4, 5\)"),
    ],
)
def test_bad_tensors(query, key, value, error, message):
    with pytest.raises(error, match=message):
        segops.interlaced_attention(query, key, value, relation="local")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"relation": "long"}, ValueError, "relation: expected one of 'global', 'local', got 'long'"),
        ({"down_factor": 0}, ValueError, "down_factor: expected integers >= 1, got 0"),
        ({"down_factor": (8, -1)}, ValueError, r"down_factor: expected integers >= 1, got \(8, -1\)"),
        ({"down_factor": (8, 8, 8)}, ValueError, "down_factor: expected one integer or two, got 3"),
        ({"down_factor": 8.0}, TypeError, "down_factor: expected an integer, got float"),
        ({"down_factor": "8"}, TypeError, "down_factor: expected an integer, got str"),
        ({"scale": float("nan")}, ValueError, "scale: expected a finite number, got nan"),
        ({"scale": "1"}, TypeError, "scale: expected a number, got str"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        segops.interlaced_attention(X, X, X, **{"relation": "local", **options})
