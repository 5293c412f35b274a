"""segops.cross_entropy_dice_focal: torch's and the published formulas, sets, nothing to count, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import segops

G = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 6, 7, generator=G, dtype=torch.float64)
TARGET = torch.randint(0, 3, (3, 6, 7), generator=G)  # without the last class
TARGET[torch.rand(TARGET.shape, generator=G) < 0.2] = 255
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
NOTHING = {"cross_entropy": 0, "dice": 0, "focal": 0}


def only(name: str, x: torch.Tensor = X, target: torch.Tensor = TARGET, **options) -> torch.Tensor:
    return segops.cross_entropy_dice_focal(x, target, **{**NOTHING, name: 1}, **options)


def gradient(function, x: torch.Tensor = X) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_first_term_is_torch_s_cross_entropy(weight, smoothing):
    options = {"label_smoothing": smoothing}
    torch.testing.assert_close(
        gradient(lambda x: only("cross_entropy", x, class_weight=weight, **options)),
        gradient(lambda x: F.cross_entropy(x, TARGET, weight, ignore_index=255, **options)),
    )
    expected = F.cross_entropy(X, TARGET, weight, ignore_index=255, **options)
    torch.testing.assert_close(only("cross_entropy", class_weight=weight, **options), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_term(gamma):
    entropy = F.cross_entropy(X, TARGET, ignore_index=255, reduction="none")[TARGET != 255]
    weight = WEIGHT[TARGET[TARGET != 255]]
    expected = (weight * (1 - (-entropy).exp()) ** gamma * entropy).sum() / weight.sum()
    torch.testing.assert_close(only("focal", class_weight=WEIGHT, gamma=gamma), expected)


def test_without_gamma_the_focal_term_is_the_cross_entropy():
    torch.testing.assert_close(
        only("focal", class_weight=WEIGHT, gamma=0), only("cross_entropy", class_weight=WEIGHT), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("classes", "counted"), [("present", 3), ("all", 4)])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_the_dice_term(classes, counted, smooth):
    valid = (TARGET != 255)[:, None]
    own = F.one_hot(TARGET.where(TARGET != 255, 0), 4).movedim(-1, 1) * valid
    p = X.softmax(1) * valid

    def dice(dims):
        return (2 * (p * own).sum(dims) + smooth) / (p.sum(dims) + own.sum(dims) + smooth)

    of_batch = 1 - dice((0, 2, 3))[:counted].mean()
    torch.testing.assert_close(only("dice", classes=classes, smooth=smooth), of_batch)
    of_images = 1 - dice((2, 3))[:, :counted].mean(1)
    actual = only("dice", classes=classes, smooth=smooth, per_image=True, reduction="none")
    torch.testing.assert_close(actual, of_images)


def test_terms_add_up():
    loss = segops.cross_entropy_dice_focal(X, TARGET, cross_entropy=0.5, dice=2, focal=-1)
    torch.testing.assert_close(loss, 0.5 * only("cross_entropy") + 2 * only("dice") - only("focal"))


def test_images_are_sets_of_their_own():
    losses = segops.cross_entropy_dice_focal(X, TARGET, per_image=True, reduction="none")
    one = [segops.cross_entropy_dice_focal(X[i : i + 1], TARGET[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(losses, torch.stack(one))
    for reduction, expected in (("mean", losses.mean()), ("sum", losses.sum())):
        loss = segops.cross_entropy_dice_focal(X, TARGET, per_image=True, reduction=reduction)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("options", [{}, {"classes": "all", "smooth": 0}, {"per_image": True}, NOTHING], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_nothing_to_count_is_a_differentiable_zero(batch, options):
    x, target = torch.randn(batch, 3, 4, 5), torch.full((batch, 4, 5), 255)
    x = x.requires_grad_()
    loss = segops.cross_entropy_dice_focal(x, target, **options)
    assert loss == 0 and loss.dim() == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_a_term_that_does_not_count_is_left_out():
    """Label smoothing of a class that is masked out is infinite."""
    x = X.clone()
    x[:, 3] = -math.inf
    loss = segops.cross_entropy_dice_focal(x, TARGET, cross_entropy=0, label_smoothing=0.1)
    assert loss.isfinite() and segops.cross_entropy_dice_focal(x, TARGET).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast(dtype):
    x = X.to(dtype)
    loss = segops.cross_entropy_dice_focal(x, TARGET)
    wide = segops.cross_entropy_dice_focal(x.float(), TARGET)
    assert loss.dtype == dtype and torch.equal(loss, wide.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(segops.cross_entropy_dice_focal(x, TARGET), wide)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dice": math.inf}, ValueError, "dice: expected a finite number, got inf"),
        ({"focal": "1"}, TypeError, "focal: expected a number, got str"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number from 0 to 1, got 1.5"),
        ({"smooth": -1}, ValueError, "smooth: expected a number >= 0, got -1"),
        ({"classes": "some"}, ValueError, "classes: expected one of 'present', 'all', got 'some'"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none', got 'max'"),
        ({"class_weight": [1.0]}, TypeError, r"class_weight: expected a tensor \(C,\), got list"),
        ({"class_weight": WEIGHT[:3]}, ValueError, r"class_weight: expected shape \(4,\), got \(3,\)"),
        ({"class_weight": WEIGHT.to("meta")}, ValueError, "class_weight: expected device cpu like logits, got meta"),
        ({"class_weight": WEIGHT.long()}, TypeError, "class_weight: expected float64, .* got torch.int64"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        segops.cross_entropy_dice_focal(X, TARGET, **options)
