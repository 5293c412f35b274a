"""segops.losses against their definitions, written in NumPy float64, and against what the papers say of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops import losses

FEW = settings(max_examples=10, deadline=None)
numbers = st.floats(0.05, 3)


def drawn(seed, classes, ignored=0.2):
    """Logits, labels, and what the definitions take: probabilities (P, C), one-hot targets, of valid pixels only."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 5, 3)
    x, y = 3 * rng.normal(size=(shape[0], classes, *shape[1:])), rng.integers(0, classes, shape)
    out = rng.random(shape) < ignored
    target = np.where(out, 255, y)
    rows = np.moveaxis(x, 1, -1)[~out]
    e = np.exp(rows - rows.max(1, keepdims=True))
    return torch.from_numpy(x), torch.from_numpy(target), e / e.sum(1, keepdims=True), np.eye(classes)[y[~out]]


def check(loss, expected):
    assert abs(loss.item() - expected) <= 1e-10 * max(1, abs(expected))


def mean(x, count=None):
    return x.sum() / max(x.size if count is None else count, 1)


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), st.floats(0, 0.9))
def test_cross_entropy(seed, classes, s):
    x, target, p, t = drawn(seed, classes)
    w = np.arange(1.0, classes + 1)
    total = -((1 - s) * t * w * np.log(p) + s / classes * w * np.log(p)).sum()
    expected = total / max((t * w).sum(), 1)
    check(losses.cross_entropy(x, target, class_weight=torch.from_numpy(w), label_smoothing=s), expected)


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), st.floats(0, 0.9))
def test_binary_cross_entropy(seed, classes, s):
    x, target, _, t = drawn(seed, classes)
    w = np.arange(1.0, classes + 1)
    price = np.linspace(0.5, 2, classes)
    q = 1 / (1 + np.exp(-np.moveaxis(x.numpy(), 1, -1)[target.numpy() != 255]))
    soft = (1 - s) * t + s * (1 - t)
    expected = mean(-w * (price * soft * np.log(q) + (1 - soft) * np.log(1 - q)))
    vectors = {"class_weight": torch.from_numpy(w), "pos_weight": torch.from_numpy(price)}
    check(losses.binary_cross_entropy(x, target, mode="multilabel", label_smoothing=s, **vectors), expected)


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), st.sampled_from([0.0, 0.4, 1.0, 2.0, 3.5]), st.floats(0, 1))
def test_focal_loss(seed, classes, gamma, alpha):
    x, target, p, t = drawn(seed, classes)
    a = np.where(np.arange(classes) == 0, 1 - alpha, alpha)
    expected = mean(-(a * t * (1 - p) ** gamma * np.log(p)).sum(1))
    check(losses.focal_loss(x, target, gamma=gamma, alpha=alpha), expected)
    q = 1 / (1 + np.exp(-np.moveaxis(x.numpy(), 1, -1)[target.numpy() != 255]))
    pt, at = np.where(t > 0, q, 1 - q), np.where(t > 0, alpha, 1 - alpha)
    expected = mean(-at * (1 - pt) ** gamma * np.log(pt))
    check(losses.focal_loss(x, target, gamma=gamma, alpha=alpha, mode="multilabel"), expected)


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), numbers, numbers, numbers, st.booleans())
def test_regions(seed, classes, alpha, beta, smooth, per_image):
    x, target, _, _ = drawn(seed, classes)
    dice, tversky, focal = [], [], []
    for i in range(len(x)) if per_image else [slice(None)]:
        images = slice(i, i + 1) if per_image else i
        p = np.moveaxis(x[images].softmax(1).numpy(), 1, -1)[target[images].numpy() != 255]
        t = np.eye(classes)[target[images][target[images] != 255].numpy()]
        tp, fp, fn = (p * t).sum(0), (p * (1 - t)).sum(0), ((1 - p) * t).sum(0)
        index = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)
        dice.append((1 - (2 * tp + smooth) / (p.sum(0) + t.sum(0) + smooth)).mean())
        tversky.append((1 - index).mean())
        focal.append(((1 - index) ** 0.75).mean())
    options = {"smooth": smooth, "per_image": per_image}
    check(losses.dice_loss(x, target, **options), np.mean(dice))
    check(losses.tversky_loss(x, target, alpha=alpha, beta=beta, **options), np.mean(tversky))
    check(losses.focal_tversky_loss(x, target, alpha=alpha, beta=beta, **options), np.mean(focal))


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), st.floats(0, 1), st.floats(0, 1))
def test_combo_loss(seed, classes, alpha, beta):
    x, target, p, t = drawn(seed, classes)
    entropy = mean(-(beta * t * np.log(p) + (1 - beta) * (1 - t) * np.log1p(-p)))
    overlap = ((2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)).sum() if len(p) else 0
    check(losses.combo_loss(x, target, alpha=alpha, beta=beta), alpha * entropy - (1 - alpha) * overlap)


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), st.integers(0, 3))
def test_label_relaxation(seed, classes, radius):
    x, target, _, _ = drawn(seed, classes)
    p, total = x.softmax(1), []
    for n, i, j in (target != 255).nonzero().tolist():
        window = target[n, max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1]
        near = sorted(set(window.flatten().tolist()) - {255})
        total.append(-np.log(p[n, near, i, j].sum().item()))
    check(losses.label_relaxation(x, target, radius=radius), mean(np.array(total)))


@FEW
@given(st.integers(0, 1 << 30), st.integers(2, 5), st.integers(1, 30), st.sampled_from([None, 0.3, 0.7]))
def test_ohem_keeps_the_hardest(seed, classes, min_kept, threshold):
    x, target, p, t = drawn(seed, classes)
    pt = (p * t).sum(1)
    hard = np.argsort(pt) < 0
    hard[np.argsort(pt)[:min_kept]] = True
    if threshold is not None:
        hard |= pt < threshold
    check(losses.ohem_cross_entropy(x, target, min_kept=min_kept, threshold=threshold), mean(-np.log(pt[hard])))
    share = min_kept / 30
    hard = np.argsort(pt)[: max(int(np.ceil(share * len(pt))), 1)]
    check(losses.ohem_cross_entropy(x, target, min_kept=share, threshold=None), mean(-np.log(pt[hard])))


def test_identities():
    x, target = torch.randn(2, 4, 7, 8, dtype=torch.float64), torch.randint(0, 3, (2, 7, 8))
    entropy = losses.cross_entropy(x, target)
    torch.testing.assert_close(losses.focal_loss(x, target, gamma=0), entropy)
    torch.testing.assert_close(losses.label_relaxation(x, target, radius=0), entropy)
    torch.testing.assert_close(losses.ohem_cross_entropy(x, target), entropy)  # fewer pixels than are kept at least
    torch.testing.assert_close(
        losses.tversky_loss(x, target, alpha=0.5, beta=0.5, smooth=0.5), losses.dice_loss(x, target, smooth=1.0)
    )
    binary = losses.binary_cross_entropy(x, target, mode="multilabel")
    torch.testing.assert_close(losses.focal_loss(x, target, gamma=0, mode="multilabel"), binary)
    torch.testing.assert_close(losses.combo_loss(x, target, alpha=1.0, beta=0.5, mode="multilabel"), binary / 2)
    paper, other = (losses.combo_loss(x, target, variant=v) for v in ("paper", "nonnegative"))
    torch.testing.assert_close(other - paper, torch.tensor(0.5 * 4, dtype=torch.float64))
    two = losses.focal_loss(x[:, :2], target.clamp(max=1))  # two classes with a softmax are one with a sigmoid
    torch.testing.assert_close(two, losses.focal_loss(x[:, 1] - x[:, 0], target.clamp(max=1)))


def test_regions_of_a_perfect_prediction():
    target = torch.randint(0, 2, (2, 6, 7))
    logits = 2000.0 * torch.stack([target == c for c in range(3)], 1).double()  # p of class 2 is 0, as its target
    for loss in (losses.dice_loss, losses.tversky_loss, losses.focal_tversky_loss):
        x = logits.requires_grad_()
        out = loss(x, target, smooth=0.0)
        assert abs(out.item()) < 1e-12
        assert torch.autograd.grad(out, x)[0].isfinite().all()


def test_absent_classes():
    x, target = torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 0], [1, 1]]])
    loss = losses.dice_loss(x, target, smooth=0.0, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([0.6, 0.6, 1.0]))
    torch.testing.assert_close(losses.dice_loss(x, target, smooth=0.0), loss.mean())
    torch.testing.assert_close(losses.dice_loss(x, target, smooth=0.0, absent="zero"), loss[:2].sum() / 3)
    torch.testing.assert_close(losses.dice_loss(x, target, smooth=0.0, classes="present"), loss[:2].mean())
    torch.testing.assert_close(losses.dice_loss(x, target, smooth=0.0, classes=[0, 2]), loss[[0, 2]].mean())


def test_large_logits_have_exact_gradients():
    x = torch.tensor([[[[80.0]], [[0.0]], [[-90.0]]]], requires_grad=True)
    loss = losses.combo_loss(x, torch.tensor([[[1]]]), alpha=1.0, beta=0.5)
    torch.testing.assert_close(loss, torch.tensor((80.0 + 80.0) / 6))  # of classes 0 and 1; class 2 is right
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0].flatten(), torch.tensor([1 / 3, -1 / 3, 0.0]))


def test_combined_loss():
    x, target = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randint(0, 4, (2, 5, 6))
    parts = {"ce": losses.CrossEntropyLoss(), "lovasz": losses.LovaszSoftmaxLoss(), "dice": losses.DiceLoss()}
    loss = losses.CombinedLoss(parts, weights=[1, 0.5, 0.25])
    expected = losses.cross_entropy(x, target) + 0.5 * segops.lovasz_softmax(x, target)
    expected = expected + 0.25 * losses.dice_loss(x, target)
    torch.testing.assert_close(loss(x, target), expected)
    assert list(loss.parts(x, target)) == list(parts)
    torch.testing.assert_close(losses.CombinedLoss(parts)(x, target), sum(loss.parts(x, target).values()))
    assert "weights=[1.0, 0.5, 0.25]" in repr(loss)
    for arguments, error in [
        (([losses.DiceLoss()],), TypeError),
        (({"ce": losses.cross_entropy},), TypeError),
        (({},), ValueError),
        ((parts, [1, 2]), ValueError),
        ((parts, [1, 2, float("nan")]), ValueError),
    ]:
        with pytest.raises(error, match="expected"):
            losses.CombinedLoss(*arguments)
