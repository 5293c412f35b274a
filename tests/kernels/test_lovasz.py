"""What is special to the Lovasz losses' GPU kernels: rows of several blocks, keys, ignored and broken pixels."""

from __future__ import annotations

import math

import pytest
import torch

import segops
from segops.reference import lovasz_grad as reference_grad
from segops.reference import lovasz_hinge as reference_hinge
from segops.reference import lovasz_softmax as reference_softmax
from segops.testing import assert_gradients_match

pytest.importorskip("triton")

from segops.kernels import lovasz, lovasz_grad, lovasz_hinge, lovasz_softmax

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LONG = 2 * lovasz.BLOCK + 37
EPS = {torch.float32: 1e-6, torch.float64: 1e-12}


def without_ties(*shape: int) -> torch.Tensor:
    """Probabilities that float32 has exactly, so that no two of the p and 1 - p are equal, in any dtype."""
    count = math.prod(shape)
    bits = (4 * count).bit_length()
    return ((4 * torch.randperm(count) + 1) / 2.0**bits).double().view(shape)


def labels(classes: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, classes, shape).masked_fill(torch.rand(shape) < 0.1, 255)


@DTYPES
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("points", [1, lovasz.BLOCK // 2, lovasz.BLOCK, LONG])
def test_rows_of_any_number_of_blocks(points, per_image, dtype):
    p, target = without_ties(2, 3, points), labels(3, 2, points)
    rest = target, None, [0, 1, 2], True, per_image, 255, False
    grad = torch.rand(2 if per_image else 1, dtype=torch.float64)
    loss = lovasz_softmax.lovasz_softmax(p.to(dtype), *rest)
    torch.testing.assert_close(loss.double(), reference_softmax.lovasz_softmax(p, *rest), rtol=EPS[dtype], atol=0)
    actual = lovasz_softmax.lovasz_softmax_backward(grad.to(dtype), p.to(dtype), *rest)
    assert_gradients_match(actual, reference_softmax.lovasz_softmax_backward(grad, p, *rest), EPS[dtype])


@DTYPES
@pytest.mark.parametrize("per_image", [False, True])
def test_hinge_rows_of_several_blocks(per_image, dtype):
    logits, target = 4 * without_ties(2, LONG) - 2, labels(2, 2, LONG)
    rest = target, per_image, 255
    grad = torch.rand(2 if per_image else 1, dtype=torch.float64)
    loss = lovasz_hinge.lovasz_hinge(logits.to(dtype), *rest)
    torch.testing.assert_close(loss.double(), reference_hinge.lovasz_hinge(logits, *rest), rtol=EPS[dtype], atol=0)
    actual = lovasz_hinge.lovasz_hinge_backward(grad.to(dtype), logits.to(dtype), *rest)
    assert_gradients_match(actual, reference_hinge.lovasz_hinge_backward(grad, logits, *rest), EPS[dtype])


@pytest.mark.parametrize("classes", [[1, 2], [2, 0, 1], [3, 0], [2], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("from_logits", [True, False])
def test_any_list_of_classes(classes, from_logits):
    x, target, weight = torch.randn(2, 4, 300).double(), labels(4, 2, 300), torch.rand(4).double()
    x = x if from_logits else x.sigmoid()
    rest = target, weight, classes, False, True, 255, from_logits
    grad = torch.rand(2).double()
    actual = lovasz_softmax.lovasz_softmax(x, *rest)
    torch.testing.assert_close(actual, reference_softmax.lovasz_softmax(x, *rest), rtol=1e-12, atol=0)
    actual = lovasz_softmax.lovasz_softmax_backward(grad, x, *rest)
    assert_gradients_match(actual, reference_softmax.lovasz_softmax_backward(grad, x, *rest), 1e-12)


@DTYPES
def test_ties_share_one_error(dtype):
    """In whatever order: all errors are 1/2, the loss is 1/2, and the absolute slopes of each class sum to 1."""
    p = torch.full((1, 2, LONG), 0.5, dtype=dtype)
    rest = torch.randint(0, 2, (1, LONG)), None, [0, 1], True, False, None, False
    torch.testing.assert_close(lovasz_softmax.lovasz_softmax(p, *rest), p.new_tensor([0.5]))
    slopes = lovasz_softmax.lovasz_softmax_backward(p.new_ones(1), p, *rest)
    torch.testing.assert_close(slopes.abs().sum(2), p.new_full((1, 2), 0.5))
    assert torch.equal(slopes[0, 0] < 0, rest[0][0] == 0)


@DTYPES
def test_errors_of_any_size_are_in_order(dtype):
    """From denormal to infinite. The last pixel, of error 0, is the foreground: it takes no part but counts."""
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    sizes = torch.tensor([0.0, tiny / 64, tiny / 2, tiny, 1e-9, 0.5, 1.0, 3.0, huge / 2, huge], dtype=dtype)
    sizes = sizes[torch.randperm(len(sizes))]
    p = torch.cat([sizes, sizes.new_ones(1)]).expand(1, 2, -1)
    rest = torch.tensor([[1] * len(sizes) + [0]]), None, [0], False, False, None, False
    one = p.new_ones(1)
    actual = lovasz_softmax.lovasz_softmax_backward(one, p, *rest)
    oracle = reference_softmax.lovasz_softmax_backward(one.double(), p.double(), *rest)
    torch.testing.assert_close(actual.double(), oracle, rtol=EPS[dtype], atol=0)
    assert torch.equal(actual[0, 0, :-1] > 0, sizes > 0)
    infinite = torch.where(p == huge, math.inf, p)
    assert lovasz_softmax.lovasz_softmax(infinite, *rest).item() == math.inf
    assert torch.equal(lovasz_softmax.lovasz_softmax_backward(one, infinite, *rest), actual)


@DTYPES
@pytest.mark.parametrize("channels", [1, 3])
def test_everything_ignored(channels, dtype):
    x = torch.full((2, channels, 40), math.nan, dtype=dtype)
    target = torch.full((2, 40), -1)
    for per_image in (False, True):
        rest = target, None, list(range(channels)), True, per_image, -1, True
        sets = 2 if per_image else 1
        assert torch.equal(lovasz_softmax.lovasz_softmax(x, *rest), x.new_zeros(sets))
        assert not lovasz_softmax.lovasz_softmax_backward(x.new_ones(sets), x, *rest).any()
        assert torch.equal(lovasz_hinge.lovasz_hinge(x[:, 0], target, per_image, -1), x.new_zeros(sets))
        assert not lovasz_hinge.lovasz_hinge_backward(x.new_ones(sets), x[:, 0], target, per_image, -1).any()


@DTYPES
@pytest.mark.parametrize("channels", [1, 3])
def test_a_nan_counts_where_its_pixel_does(channels, dtype):
    x, target = torch.randn(2, channels, 50, dtype=dtype), labels(2, 2, 50)
    target[:, :2] = torch.tensor([255, 1])
    classes, one = list(range(channels)), torch.ones(2, dtype=dtype)
    broken = x.clone()
    broken[:, :, 0] = math.nan  # ignored

    def softmax(x):
        rest = target, None, classes, True, True, 255, True
        return lovasz_softmax.lovasz_softmax(x, *rest), lovasz_softmax.lovasz_softmax_backward(one, x, *rest)

    def hinge(x):
        rest = x[:, 0], target, True, 255
        return lovasz_hinge.lovasz_hinge(*rest), lovasz_hinge.lovasz_hinge_backward(one, *rest)[:, None]

    for function in (softmax, hinge):
        clean_loss, clean_gradient = function(x)
        loss, gradient = function(broken)
        assert torch.equal(loss, clean_loss)
        assert torch.equal(gradient, clean_gradient)
        assert not gradient[:, :, 0].any()
        broken_too = broken.clone()
        broken_too[0, 0, 1] = -math.nan  # valid
        loss, gradient = function(broken_too)
        assert loss.isnan().tolist() == [True, False]
        assert torch.equal(gradient[1], clean_gradient[1])
        assert torch.equal(gradient[0].isnan(), (target[0] != 255).expand_as(gradient[0]))
        assert not gradient[0, :, target[0] == 255].any()


def test_one_impossible_class_is_no_nan():
    """A logit of -inf, the first of its pixel, is a probability of 0."""
    x = torch.randn(1, 3, 20).double()
    x[0, 0, :5] = -math.inf
    rest = torch.randint(0, 3, (1, 20)), None, [0, 1, 2], True, False, None, True
    torch.testing.assert_close(
        lovasz_softmax.lovasz_softmax(x, *rest), reference_softmax.lovasz_softmax(x, *rest), rtol=1e-12, atol=0
    )
    actual = lovasz_softmax.lovasz_softmax_backward(x.new_ones(1), x, *rest)
    assert_gradients_match(actual, reference_softmax.lovasz_softmax_backward(x.new_ones(1), x, *rest), 1e-12)


def test_no_foreground_costs_the_largest_error():
    logits, target = torch.randn(1, LONG), torch.zeros(1, LONG, dtype=torch.long)
    assert lovasz_hinge.lovasz_hinge(logits, target, True, None).item() == 1 + logits.max().item()
    gradient = lovasz_hinge.lovasz_hinge_backward(torch.ones(1), logits, target, True, None)
    assert gradient.nonzero().tolist() == [[0, int(logits.argmax())]]


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label, ignore_index):
    """Wherever the label is; a negative one too."""
    target = torch.randint(0, 2, (2, 700))
    target[1, 699] = label
    spare = "" if ignore_index is None else " or ignore_index = 255"
    with segops.backend("triton"):
        with pytest.raises(ValueError, match=f"^target: expected labels from 0 to 2{spare}, got others"):
            segops.lovasz_softmax(torch.randn(2, 3, 700), target, ignore_index=ignore_index)
        with pytest.raises(ValueError, match=f"^target: expected labels from 0 to 1{spare}, got others"):
            segops.lovasz_softmax(torch.randn(2, 1, 700), target, ignore_index=ignore_index)
        with pytest.raises(ValueError, match=f"^target: expected labels from 0 to 1{spare}, got others"):
            segops.lovasz_hinge(torch.randn(2, 700), target, ignore_index=ignore_index)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, math.nan])
def test_other_values_than_zeros_and_ones(value):
    x = torch.zeros(2, LONG)
    x[1, -1] = value
    with segops.backend("triton"), pytest.raises(ValueError, match="^sorted_foreground: expected zeros and ones, got"):
        segops.lovasz_grad(x)


@DTYPES
def test_steps_of_several_blocks(dtype):
    x = torch.stack([torch.rand(LONG) < 0.3, torch.zeros(LONG), torch.ones(LONG), torch.arange(LONG) == LONG - 1])
    x = x.to(dtype)
    oracle = reference_grad.lovasz_grad(x.double())
    for rows in (x, x.T.contiguous().T):
        torch.testing.assert_close(lovasz_grad.lovasz_grad(rows).double(), oracle, rtol=EPS[dtype], atol=0)


def test_counts_beyond_float32_are_exact():
    """A row that goes on: 2^24 + 1 foreground elements come before its second block, as many after it."""
    block, many = lovasz.BLOCK, 2**24 + 1
    x = (torch.arange(2 * block) % 3 == 0).float()[None]
    ends = torch.tensor([[many, 2 * many]])
    out = torch.zeros(1, 2 * block)
    lovasz_grad.steps_kernel[(2,)](x, ends, out, 2 * block, 2, 2 * block, 1, BLOCK=block)
    foreground = x[0, block:] != 0
    before = many + foreground.cumsum(0) - foreground.long()
    union = (2 * many + torch.arange(block, 2 * block) - before).double()
    oracle = torch.where(foreground, 1 / union, (2 * many - before) / (union * (union + 1)))
    torch.testing.assert_close(out[0, block:].double(), oracle, rtol=5e-7, atol=0)
