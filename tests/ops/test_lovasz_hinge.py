"""segops.lovasz_hinge: golden cases, properties of the loss, edge cases, bad input."""

from __future__ import annotations

import golden_crf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("lovasz").items()}


def loss_and_gradient(x, target, **options):
    x = x.detach().clone().requires_grad_()
    loss = segops.lovasz_hinge(x, target, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "x", "labels", "options"),
    [
        ("hinge_img", "hinge_logits", "hinge_labels", {}),
        ("hinge_batch", "hinge_logits", "hinge_labels", {"per_image": False}),
        ("hinge_img_ign255", "hinge_logits", "hinge_labels_ign", {"ignore_index": 255}),
        ("hinge_batch_ign255", "hinge_logits", "hinge_labels_ign", {"ignore_index": 255, "per_image": False}),
        ("kornia_hinge", "hinge_logits", "hinge_labels", {}),
        ("smp_bin_batch", "hinge_logits", "hinge_labels_ign", {"ignore_index": 255, "per_image": False}),
        ("smp_ml", "ml_logits", "ml_labels", {"per_image": False}),
    ],
)
def test_golden(name, x, labels, options, dtype):
    """The peers subtract Jaccard values near 1 in float32, and their steps are off by the rounding of those."""
    loss, gradient = loss_and_gradient(GOLDEN[x].to(dtype), GOLDEN[labels], **options)
    expected = GOLDEN[f"{name}_grad"]
    assert abs(loss - GOLDEN[f"{name}_loss"]) <= 1e-6 * max(1, GOLDEN[f"{name}_loss"])
    assert (gradient - expected).abs().max() <= torch.finfo(torch.float32).eps + 1e-6 * expected.abs().max()


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 3), points=st.integers(1, 2000), per_image=st.booleans(), scale=st.sampled_from([0.1, 5.0]))
def test_any_sizes_agree_with_the_reference(batch, points, per_image, scale):
    from segops.reference.lovasz_hinge import lovasz_hinge, lovasz_hinge_backward

    g = torch.Generator().manual_seed(points)
    x = scale * torch.randn(batch, points, generator=g, dtype=torch.float64)
    target = torch.randint(0, 3, (batch, points), generator=g)  # 2 is ignored
    out = torch.ops.segops.lovasz_hinge(x, target, per_image, 2)
    torch.testing.assert_close(out, lovasz_hinge(x, target, per_image, 2), rtol=1e-11, atol=1e-11)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        torch.ops.segops.lovasz_hinge_backward(grad, x, target, per_image, 2),
        lovasz_hinge_backward(grad, x, target, per_image, 2),
        rtol=1e-11,
        atol=1e-13,
    )


def test_right_by_more_than_the_margin_costs_nothing():
    target = torch.randint(0, 2, (2, 6, 6))
    loss, gradient = loss_and_gradient(1.5 * (2.0 * target - 1), target)
    assert loss == 0 and not gradient.any()


def test_errors_of_one_cost_the_jaccard_loss():
    """Logits of 0 where it is wrong to be there, beyond the margin elsewhere: the set function itself."""
    target = torch.randint(0, 2, (1, 400))
    wrong = torch.rand(1, 400) < 0.3
    logits = torch.where(wrong, 0.0, 2.0 * (2 * target - 1)).double()
    predicted = torch.where(wrong, 1 - target, target)
    iou = ((predicted == 1) & (target == 1)).sum() / ((predicted == 1) | (target == 1)).sum()
    assert abs(segops.lovasz_hinge(logits, target) - (1 - iou)) <= 1e-6


def test_without_foreground_the_largest_error_counts():
    x = torch.randn(1, 50)
    loss, gradient = loss_and_gradient(x, torch.zeros(1, 50, dtype=torch.long))
    assert loss == 1 + x.max() and gradient.nonzero().tolist() == [[0, int(x.argmax())]]


def test_more_pixels_than_float32_counts():
    points = 2**24 + 3
    x = torch.full((1, points), -0.5)
    x[0, -1], x[0, -2] = -0.75, 0.0  # 1 - z: the last pixel first, all the others, then the last but one
    target = torch.zeros(1, points, dtype=torch.uint8)
    target[0, -2:] = 1
    x[0, :-2] = 0.25 - torch.arange(points - 2) / points * 0.125  # background errors 1 + z in (1.125, 1.25]
    loss, gradient = loss_and_gradient(x, target)
    background = points - 2  # steps: 1/2, then (2 - 1) / ((2 + b) (3 + b)), then 1 / (2 + background)
    assert abs(gradient[0, -1] + 0.5) <= 1e-7 and abs(gradient[0, -2] * (2 + background) + 1) <= 1e-6
    assert abs(gradient[0, :-2].double().sum() - (1 / 2 - 1 / (2 + background))) <= 1e-7
    assert 0.5 * 1.75 + 0.5 * 1.125 <= loss <= 0.5 * 1.75 + 0.5 * 1.25


def test_everything_ignored_is_a_differentiable_zero():
    for per_image in (False, True):
        loss, gradient = loss_and_gradient(
            torch.full((2, 4, 5), torch.nan), torch.full((2, 4, 5), 255), ignore_index=255, per_image=per_image
        )
        assert loss == 0 and torch.equal(gradient, torch.zeros(2, 4, 5))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_input_is_a_differentiable_zero(shape):
    loss, gradient = loss_and_gradient(torch.zeros(shape), torch.zeros(shape, dtype=torch.long))
    assert loss == 0 and gradient.shape == shape


def test_one_pixel():
    loss, gradient = loss_and_gradient(torch.tensor([[0.25]]), torch.tensor([[1]]))
    assert loss == 0.75 and gradient == -1


def test_nan_reaches_the_loss_of_its_image_alone():
    x = torch.randn(2, 40, requires_grad=True)
    x.data[1, 7] = torch.nan
    losses = segops.lovasz_hinge(x, torch.randint(0, 2, (2, 40)), reduction="none")
    assert losses[0].isfinite() and losses[1].isnan()
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert gradient[0].isfinite().all() and gradient[1].isnan().all()


def test_infinite_and_huge_logits():
    target = torch.tensor([[1, 0, 1, 0]])
    assert segops.lovasz_hinge(torch.tensor([[torch.inf, -torch.inf, 2.0, -2.0]]), target) == 0
    assert segops.lovasz_hinge(torch.tensor([[-torch.inf, 0.0, 2.0, -2.0]]), target) == torch.inf
    assert segops.lovasz_hinge(torch.tensor([[1e30, -1e30, -1e30, -2.0]]), target).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    x, target = torch.randn(2, 30, 20).to(dtype), torch.randint(0, 2, (2, 30, 20))
    loss, gradient = loss_and_gradient(x, target)
    wide_loss, wide = loss_and_gradient(x.float(), target)
    assert torch.equal(loss, wide_loss.to(dtype)) and torch.equal(gradient, wide.to(dtype))


def test_layouts_label_types_and_a_channel_of_one():
    x, target = torch.randn(2, 6, 7), torch.randint(0, 2, (2, 6, 7))
    loss, gradient = loss_and_gradient(x, target)
    for other in (target.bool(), target.byte(), target[:, None], target.mT.contiguous().mT):
        y = x[:, None] if other.dim() == 4 else x.mT.contiguous().mT
        other_loss, other_gradient = loss_and_gradient(y, other)
        assert torch.equal(other_loss, loss) and torch.equal(other_gradient.view_as(gradient), gradient)
    assert torch.equal(loss_and_gradient(x[:, None], target)[0], loss)


X, T = torch.zeros(2, 5, 5), torch.zeros(2, 5, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("error", "message", "args", "options"),
    [
        (TypeError, "logits: expected a tensor", (1.0, T), {}),
        (TypeError, "logits: expected float64, float32", (X.long(), T), {}),
        (TypeError, "target: expected integer labels", (X, X), {}),
        (ValueError, "target: expected device cpu like logits, got meta", (X, T.to("meta")), {}),
        (ValueError, r"target: expected the shape \(N, ...\) of logits, got \(2, 5, 4\)", (X, T[..., :4]), {}),
        (ValueError, "target: expected the shape", (X[0, 0], T[0, 0]), {}),
        (ValueError, "target: expected labels from 0 to 1, got 2", (X, T + 2), {}),
        (TypeError, "ignore_index: expected an integer, got str", (X, T), {"ignore_index": "255"}),
        (ValueError, "reduction: expected one of", (X, T), {"reduction": "max"}),
    ],
)
def test_bad_input(error, message, args, options):
    with pytest.raises(error, match=f"^{message}"):
        segops.lovasz_hinge(*args, **options)
