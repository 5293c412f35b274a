"""segops.asymmetric_nonlocal: golden values, the non-local operation as its limit, and bad input."""

from __future__ import annotations

import golden_crf
import pytest
import torch

import segops

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("asymmetric_nonlocal").items()}


def plain(query, key, value, sizes, scale):
    """As published: four pools each, and two products."""
    pools = [torch.nn.AdaptiveAvgPool2d(size) for size in sizes]
    keys, values = (torch.cat([pool(x).flatten(2) for pool in pools], 2) for x in (key, value))
    weights = torch.softmax(scale * (query.flatten(2).mT @ keys), 2)
    return (values @ weights.mT).view(query.shape[0], value.shape[1], *query.shape[2:])


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden(case):
    inputs = [GOLDEN[f"{case}_{name}"].requires_grad_() for name in ("theta", "phi", "g")]
    out = segops.asymmetric_nonlocal(*inputs)
    gradients = torch.autograd.grad(out, inputs, GOLDEN[f"{case}_gout"])
    for name, actual in zip(("out", "dtheta", "dphi", "dg"), (out, *gradients), strict=True):
        torch.testing.assert_close(actual, GOLDEN[f"{case}_ann_{name}"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("sizes", "scale"), [((1, 3, 6, 8), None), ((1, 2, (3, 5)), -0.4)])
def test_is_the_published_composition(sizes, scale):
    """Keys and values of another size than the queries'."""
    query, key = torch.randn(2, 6, 9, 7, dtype=torch.float64), torch.randn(2, 6, 19, 14, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (query, key, torch.randn(2, 5, 19, 14, dtype=torch.float64))]
    out = segops.asymmetric_nonlocal(*inputs, sizes=sizes, scale=scale)
    expected = plain(*inputs, sizes, 6**-0.5 if scale is None else scale)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-11)
    direction = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, inputs, direction) for y in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_the_pyramid_of_the_map_itself_is_the_non_local_operation():
    query, key, value = torch.randn(3, 2, 4, 6, 5)
    out = segops.asymmetric_nonlocal(query, key, value, sizes=[(6, 5)])
    torch.testing.assert_close(out, segops.nonlocal_attention(query, key, value, scale=0.5))


def test_one_bin_is_the_mean_of_the_map():
    query, key, value = torch.randn(3, 2, 4, 6, 5)
    out = segops.asymmetric_nonlocal(query, key, value, sizes=(1,))
    torch.testing.assert_close(out, value.mean((2, 3), keepdim=True).expand_as(out))


def test_half_precision_and_no_image():
    x = torch.randn(2, 8, 9, 9).bfloat16()
    out = segops.asymmetric_nonlocal(x, x, x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), segops.asymmetric_nonlocal(*[x.float()] * 3), rtol=0.03, atol=0.02)
    assert segops.asymmetric_nonlocal(x[:0], x[:0], x[:0, :3]).shape == (0, 3, 9, 9)


X = torch.rand(2, 3, 5, 6)


def test_what_is_not_a_number():
    """A key is in the mean of all; a value's channel and a query's pixel are their own."""
    query, key, value = torch.randn(3, 1, 4, 9, 8)
    bad = [x.clone() for x in (query, key, value)]
    for x in bad:
        x[0, 1, 3, 5] = torch.nan
    assert segops.asymmetric_nonlocal(query, bad[1], value).isnan().all()
    assert segops.asymmetric_nonlocal(query, key, bad[2])[0].flatten(1).isnan().all(1).tolist() == [0, 1, 0, 0]
    assert segops.asymmetric_nonlocal(bad[0], key, value)[0].isnan().all(0).nonzero().tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X[0], X, X), {}, ValueError, r"query: expected 4 dimensions \(N, C, H, W\), got shape \(3, 5, 6\)"),
        ((X, X.numpy(), X), {}, TypeError, "key: expected a tensor .* got ndarray"),
        ((X, X, X.double()), {}, TypeError, "value: expected torch.float32 like query, got torch.float64"),
        ((X, X[:, :2], X), {}, ValueError, r"key: expected shape \(2, 3, H, W\) to go with query, got \(2, 2, 5, 6\)"),
        (
            (X, X, X[..., 1:]),
            {},
            ValueError,
            r"value: expected shape \(2, C, 5, 6\) to go with key, got \(2, 3, 5, 5\)",
        ),
        ((X, X, X.to("meta")), {}, ValueError, "value: expected device cpu like query, got meta"),
        ((X, X, X), {"sizes": ()}, ValueError, "sizes: expected at least one, got none"),
        ((X, X, X), {"scale": float("inf")}, ValueError, "scale: expected a finite number, got inf"),
        ((X, X, X), {"scale": "1"}, TypeError, "scale: expected a number, got str"),
    ],
)
def test_bad_arguments(args, options, error, message):
    with pytest.raises(error, match=message):
        segops.asymmetric_nonlocal(*args, **options)
