"""What holds for every loss of segops.losses: shapes, dtypes, ignored pixels, reductions, errors, modules, compilation."""

from __future__ import annotations

import pytest
import torch

from segops import losses

WEIGHT = torch.tensor([1.0, 0.5, 2.0])
# Function, its module, options, and the modes whose shapes it takes.
LOSSES = {
    "binary_cross_entropy": (losses.BinaryCrossEntropyLoss, {"label_smoothing": 0.1}, "binary multilabel"),
    "combo_loss": (losses.ComboLoss, {"beta": 0.7, "variant": "nonnegative"}, "binary multiclass multilabel"),
    "cross_entropy": (losses.CrossEntropyLoss, {"label_smoothing": 0.1}, "multiclass"),
    "dice_loss": (losses.DiceLoss, {"squared": True, "smooth": (0.0, 2e-3)}, "binary multiclass multilabel"),
    "focal_loss": (losses.FocalLoss, {"gamma": 0.5, "alpha": 0.25}, "binary multiclass multilabel"),
    "focal_tversky_loss": (losses.FocalTverskyLoss, {"classes": "present"}, "binary multiclass multilabel"),
    "label_relaxation": (losses.LabelRelaxationLoss, {"radius": 1}, "multiclass"),
    "ohem_cross_entropy": (losses.OHEMCrossEntropyLoss, {"min_kept": 0.4, "threshold": 0.4}, "multiclass"),
    "tversky_loss": (losses.TverskyLoss, {"alpha": 0.2, "smooth": 0.0}, "binary multiclass multilabel"),
}
CASES = [(name, mode) for name, (_, _, modes) in LOSSES.items() for mode in modes.split()]
SETS = {"combo_loss", "dice_loss", "focal_tversky_loss", "tversky_loss"}  # of images or batches, not of pixels


def inputs(mode, dtype=torch.float64, size=(5, 6)):
    """Logits and a target in which a fifth is ignored."""
    shape = (2, *size) if mode == "binary" else (2, 3, *size)
    logits = torch.randn(shape, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 3 if mode == "multiclass" else 2, (2, *size) if mode == "multiclass" else shape)
    return logits, target.masked_fill(torch.rand(target.shape) < 0.2, 255)


def call(name, logits, target, **options):
    return getattr(losses, name)(logits, target, **{**LOSSES[name][1], **options})


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_the_table_covers_every_loss():
    functions = {n for n in losses.__all__ if n.islower()} - {"convention", "lovasz_hinge", "lovasz_softmax"}
    assert functions == set(LOSSES)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_gradcheck(name, mode):
    logits, target = inputs(mode, size=(2, 3))
    assert torch.autograd.gradcheck(lambda x: call(name, x, target), logits, fast_mode=True)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_ignored_pixels_have_no_part(name, mode):
    logits, target = inputs(mode)
    loss = call(name, logits, target)
    other = torch.where(_ignored(target, logits), torch.nan, logits.detach()).requires_grad_()
    torch.testing.assert_close(call(name, other, target), loss)
    ours, theirs = gradient(loss, logits), gradient(call(name, other, target), other)
    torch.testing.assert_close(theirs, ours)
    assert not ours[_ignored(target, logits)].any()
    assert ours.abs().sum() > 0


def _ignored(target, logits):
    mask = target == 255
    return (mask.unsqueeze(1) if mask.dim() < logits.dim() else mask).expand_as(logits)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_everything_ignored_is_a_differentiable_zero(name, mode, per_image):
    logits, target = inputs(mode)
    options = {"per_image": per_image} if name in SETS else {}
    for weight in (None, WEIGHT[:1] if mode == "binary" else WEIGHT):
        loss = call(name, logits, torch.full_like(target, 255), class_weight=weight, **options)
        assert loss.item() == 0
        assert torch.equal(gradient(loss, logits), torch.zeros_like(logits))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_nan_that_counts_is_seen(name, mode):
    logits, target = inputs(mode)
    x = logits.detach().clone()
    x[~_ignored(target, logits).clone()] = torch.nan
    assert call(name, x, target).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_halves_are_computed_in_float32(name, mode, dtype):
    logits, target = inputs(mode, dtype)
    loss, exact = call(name, logits, target), call(name, logits.double(), target)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), exact, rtol=2 * max(torch.finfo(dtype).eps, 1e-6), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        wide = call(name, logits, target)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), exact, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_reductions_agree(name, mode):
    logits, target = inputs(mode)
    options = {"per_image": True} if name in SETS else {}
    none, total, mean = (call(name, logits, target, reduction=r, **options) for r in ("none", "sum", "mean"))
    torch.testing.assert_close(none.sum(), total)
    if name in SETS:
        assert len(none) == 2
        alone = torch.stack([call(name, logits[i : i + 1], target[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(mean, alone.mean())
    else:
        assert none.shape == (target.shape if mode == "multiclass" else logits.shape)
        assert not none[(target == 255)].any()
        if name != "ohem_cross_entropy":
            torch.testing.assert_close(mean, total / (target != 255).sum())
            torch.testing.assert_close(
                call(name, logits, target, mean_over="all"), total / target.numel()
            )  # fmt: skip


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_module_is_the_function(name, mode):
    logits, target = inputs(mode)
    module_type, options, _ = LOSSES[name]
    weight = WEIGHT[:1] if mode == "binary" else WEIGHT
    module = module_type(**options, class_weight=weight, ignore_index=255)
    assert torch.equal(module(logits, target), call(name, logits, target, class_weight=weight))
    assert "ignore_index=255" in repr(module)
    assert not module.state_dict()
    assert module.to(torch.float64).class_weight.dtype == torch.float64
    with pytest.raises(TypeError, match="ignore_label"):
        module_type(ignore_label=255)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_any_layout_and_no_images(name, mode):
    logits, target = inputs(mode)
    loss = call(name, logits, target)
    strided = logits.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(call(name, strided, target.to(torch.uint8)), loss)
    empty = logits[:0].detach().requires_grad_()
    assert call(name, empty, target[:0]).item() == 0
    assert gradient(call(name, empty, target[:0]), empty).shape == empty.shape


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_whole(name):
    mode = LOSSES[name][2].split()[-1]
    logits, target = inputs(mode)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: call(name, x, target), fullgraph=True, dynamic=True, backend="eager")
    loss = compiled(logits)
    torch.testing.assert_close(loss, call(name, logits, target))
    torch.testing.assert_close(gradient(loss, logits), gradient(call(name, logits, target), logits))


def test_labels_of_classes_each_against_the_rest():
    logits, target = inputs("multiclass")
    one_hot = torch.stack([target == c for c in range(3)], 1).long().masked_fill(_ignored(target, logits), 255)
    for name in ("binary_cross_entropy", "combo_loss", "dice_loss", "focal_loss", "tversky_loss"):
        expected = call(name, logits, one_hot)
        torch.testing.assert_close(call(name, logits, target, mode="multilabel"), expected)


@pytest.mark.parametrize("name", [name for name, (*_, modes) in LOSSES.items() if "binary" in modes])
def test_one_class_with_and_without_its_axis(name):
    logits, target = inputs("binary")
    for x, t in ((logits[:, None], target), (logits[:, None], target[:, None])):
        torch.testing.assert_close(call(name, x, t), call(name, logits, target))


X, Y = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
BAD = [
    (TypeError, "logits: expected a tensor", (None, Y, {})),
    (TypeError, "logits: expected float64", (X.long(), Y, {})),
    (ValueError, r"logits: expected \(N, C, H, W\)", (X[0, 0], Y, {})),
    (ValueError, r"logits: expected \(N, C, H, W\)", (X[:, :, :0], Y[:, :0], {})),
    (TypeError, "logits: expected a dense tensor", (X.to_sparse(), Y, {})),
    (TypeError, "target: expected a tensor", (X, None, {})),
    (TypeError, "target: expected integer labels", (X, Y.float(), {})),
    (ValueError, r"target: expected shape \(2, 4, 5\)", (X, Y[:, 1:], {})),
    (ValueError, r"target: expected device cpu", (X, Y.to("meta"), {})),
    (ValueError, "target: expected labels from 0 to 2 or 255, got 3", (X, Y + 3, {})),
    (ValueError, "target: expected labels from 0 to 2, got -1", (X, Y - 1, {"ignore_index": None})),
    (TypeError, "ignore_index: expected an integer", (X, Y, {"ignore_index": 0.5})),
    (TypeError, "class_weight: expected a tensor", (X, Y, {"class_weight": [1, 2, 3]})),
    (ValueError, r"class_weight: expected shape \(3,\)", (X, Y, {"class_weight": WEIGHT[:2]})),
    (ValueError, "reduction: expected one of", (X, Y, {"reduction": "average"})),
    (ValueError, "mean_over: expected one of", (X, Y, {"mean_over": "pixels"})),
]


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input(name):
    for error, message, (logits, target, options) in BAD:
        if name == "binary_cross_entropy":
            options = {"mode": "multilabel", **options}
        if name == "combo_loss" and "mean_over" in options:
            continue
        with pytest.raises(error, match=message):
            getattr(losses, name)(logits, target, **options)


SPECIAL = [
    ("binary_cross_entropy", {}, "expected shapes of the mode binary or multilabel, got those of the mode multiclass"),
    ("binary_cross_entropy", {"mode": "binary"}, "logits: expected one class"),
    ("binary_cross_entropy", {"mode": "multilabel", "pos_weight": WEIGHT[:2]}, "pos_weight: expected shape"),
    ("binary_cross_entropy", {"mode": "multilabel", "label_smoothing": 2}, "label_smoothing: expected a number from 0"),
    ("combo_loss", {"alpha": 1.5}, "alpha: expected a number from 0 to 1"),
    ("combo_loss", {"smooth": -1}, "smooth: expected a number >= 0"),
    ("combo_loss", {"variant": "other"}, "variant: expected one of"),
    ("dice_loss", {"smooth": (1, 2, 3)}, "smooth: expected one number or two"),
    ("dice_loss", {"smooth": -1}, "smooth: expected numbers >= 0"),
    ("dice_loss", {"absent": "skip"}, "absent: expected one of"),
    ("dice_loss", {"classes": [3]}, "classes: expected labels from 0 to 2"),
    ("dice_loss", {"micro": True, "class_weight": WEIGHT}, "micro: expected no class_weight"),
    ("focal_loss", {"mode": "softmax"}, "mode: expected one of"),
    ("focal_loss", {"gamma": -1}, "gamma: expected a number >= 0"),
    ("focal_loss", {"alpha": [0.5, 0.5]}, "alpha: expected one number or 3"),
    ("focal_loss", {"reduced_threshold": 0}, "reduced_threshold: expected a finite number > 0"),
    ("label_relaxation", {"radius": -1}, "radius: expected an integer >= 0"),
    ("ohem_cross_entropy", {"min_kept": 0}, "min_kept: expected an integer >= 1"),
    ("ohem_cross_entropy", {"min_kept": 1.5}, "min_kept: expected an integer, or a share"),
    ("ohem_cross_entropy", {"threshold": -0.1}, "threshold: expected a number from 0 to 1"),
    ("tversky_loss", {"alpha": -1}, "alpha: expected a number >= 0"),
    ("tversky_loss", {"gamma": 0}, "gamma: expected a finite number > 0"),
    ("tversky_loss", {"gamma_of": "mean", "reduction": "sum"}, "gamma_of: expected 'classes'"),
]


@pytest.mark.parametrize(("name", "options", "message"), SPECIAL)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(X, Y, **options)


def test_labels_for_each_class_are_no_classes():
    with pytest.raises(ValueError, match="target: expected labels"):
        losses.focal_loss(X, torch.zeros_like(X).long(), mode="multiclass")
    with pytest.raises(ValueError, match="expected labels from 0 to 1 or 255, got 2"):
        losses.focal_loss(X, torch.full_like(X, 2).long())
