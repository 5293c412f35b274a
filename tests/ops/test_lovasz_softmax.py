"""segops.lovasz_softmax: golden cases, properties of the loss, its precision at size, edge cases, bad input."""

from __future__ import annotations

import golden_crf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.testing import assert_as_good_as

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("lovasz").items()}


def loss_and_gradient(x, target, **options):
    x = x.detach().clone().requires_grad_()
    loss = segops.lovasz_softmax(x, target, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


EPS = torch.finfo(torch.float32).eps  # of the Jaccard values that the peers subtract in float32


def check_golden(name, loss, gradient):
    """Against the peer's float32 numbers, whose steps are off by the rounding of values near 1."""
    expected = GOLDEN[f"{name}_grad"]
    assert abs(loss - GOLDEN[f"{name}_loss"]) <= 1e-6
    assert (gradient - expected).abs().max() <= EPS + 1e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all", [1, 3, 6]], ids=str)
def test_golden_berman(classes, per_image, dtype):
    name = classes if isinstance(classes, str) else "list_1_3_6"
    x, options = GOLDEN["mc_logits"].to(dtype), {"classes": classes, "per_image": per_image, "ignore_index": 255}
    loss, gradient = loss_and_gradient(x, GOLDEN["mc_labels"], **options)
    with segops.backend("reference"):
        eager_loss, eager = loss_and_gradient(x, GOLDEN["mc_labels"], **options)
    name = f"mc_{name}_{'img' if per_image else 'batch'}_ign255"
    assert_as_good_as(loss, eager_loss, GOLDEN[f"{name}_loss64"], "loss")
    assert_as_good_as(gradient, eager, GOLDEN[f"{name}_grad64"], "gradient")


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_golden_without_ignored_pixels(classes, per_image):
    loss, gradient = loss_and_gradient(GOLDEN["mc_logits"], GOLDEN["mc2_labels"], classes=classes, per_image=per_image)
    check_golden(f"mc2_{classes}_{'img' if per_image else 'batch'}", loss, gradient)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smp_mc_batch_ign255", {}),
        ("smp_mc_img_ign255", {"per_image": True}),
        ("mmseg_mc_batch_none", {"reduction": "none"}),
        ("mmseg_mc_img_mean", {"per_image": True}),
        ("mmseg_mc_img_sum", {"per_image": True, "reduction": "sum"}),
        ("mmseg_mc_batch_cw", {"class_weight": GOLDEN["mmseg_class_weight"]}),
    ],
)
def test_golden_smp_and_mmsegmentation(name, options):
    check_golden(name, *loss_and_gradient(GOLDEN["mc_logits"], GOLDEN["mc_labels"], ignore_index=255, **options))


def test_golden_gradient_by_probabilities():
    _, gradient = loss_and_gradient(GOLDEN["mc_probas"], GOLDEN["mc_labels"], from_logits=False, ignore_index=255)
    expected = GOLDEN["mc_present_batch_ign255_gradproba"]
    assert (gradient - expected).abs().max() <= EPS + 1e-6 * expected.abs().max()


@pytest.mark.parametrize("shape", ["plain", "one channel"])
def test_golden_binary(shape):
    x = GOLDEN["sig_logits"] if shape == "plain" else GOLDEN["sig_logits"][:, None]
    loss, gradient = loss_and_gradient(x, GOLDEN["sig_labels"], classes=[1])
    check_golden("sig", loss, gradient.view_as(GOLDEN["sig_grad"]))


def test_golden_an_image_that_is_ignored_whole():
    check_golden("mc3_batch_ign255", *loss_and_gradient(GOLDEN["mc_logits"], GOLDEN["mc3_labels"], ignore_index=255))


def test_golden_ties():
    """Equal errors: the loss is defined, of the gradient each class's sum."""
    loss, gradient = loss_and_gradient(GOLDEN["tie_logits"], GOLDEN["tie_labels"])
    assert abs(loss - GOLDEN["tie_loss"]) <= 1e-6
    torch.testing.assert_close(gradient.sum((0, 2, 3)), GOLDEN["tie_grad_ONE_OF_MANY"].sum((0, 2, 3)))


def test_gradient_of_a_large_batch_in_float32():
    """The published code is off by 2e-3 here, and has 81 % zeros, because it subtracts numbers near 1 (see lovasz_grad)."""
    g = torch.Generator().manual_seed(0)
    logits, target = torch.randn(4, 21, 512, 512, generator=g), torch.randint(0, 21, (4, 512, 512), generator=g)
    options = {"from_logits": False}
    p = logits.softmax(1)
    loss, gradient = loss_and_gradient(p, target, **options)
    loss64, gradient64 = loss_and_gradient(p.double(), target, **options)
    assert abs(loss - loss64) <= 1e-6 * loss64
    assert (gradient - gradient64).norm() <= 1e-6 * gradient64.norm()
    assert torch.equal(gradient == 0, gradient64 == 0)
    _, gradient = loss_and_gradient(logits, target)
    _, gradient64 = loss_and_gradient(logits.double(), target)
    assert (gradient - gradient64).norm() <= 1e-6 * gradient64.norm()


def labels_with_holes(g, classes, *shape):
    target = torch.randint(0, classes, shape, generator=g)
    return target.masked_fill(torch.rand(shape, generator=g) < 0.1, 255)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    points=st.integers(1, 700),
    per_image=st.booleans(),
    everything=st.booleans(),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
)
def test_any_sizes_agree_with_the_reference(batch, channels, points, per_image, everything, scale):
    from segops.reference.lovasz_softmax import lovasz_softmax, lovasz_softmax_backward

    g = torch.Generator().manual_seed(points)
    x = scale * torch.randn(batch, channels, points, generator=g, dtype=torch.float64)
    target = labels_with_holes(g, max(2, channels), batch, points)
    options = None, list(range(channels)), not everything, per_image, 255, True
    out = torch.ops.segops.lovasz_softmax(x, target, *options)
    torch.testing.assert_close(out, lovasz_softmax(x, target, *options), rtol=1e-11, atol=1e-11)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        torch.ops.segops.lovasz_softmax_backward(grad, x, target, *options),
        lovasz_softmax_backward(grad, x, target, *options),
        rtol=1e-10,
        atol=1e-12,
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6))
def test_hard_predictions_cost_one_minus_the_mean_iou(seed, classes):
    g = torch.Generator().manual_seed(seed)
    target, predicted = torch.randint(0, classes, (2, 2, 9, 7), generator=g)
    p = torch.nn.functional.one_hot(predicted, classes).movedim(-1, 1).double()
    iou = [((target == c) & (predicted == c)).sum() / ((target == c) | (predicted == c)).sum() for c in target.unique()]
    loss = segops.lovasz_softmax(p, target, from_logits=False)
    assert abs(loss - (1 - torch.stack(iou).double().mean())) <= 1e-6
    hard = torch.nn.functional.one_hot(target, classes).movedim(-1, 1).double()
    assert segops.lovasz_softmax(hard, target, from_logits=False) == 0


def test_the_order_of_pixels_does_not_matter():
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 5, 300, generator=g, dtype=torch.float64), labels_with_holes(g, 5, 2, 300)
    p = torch.randperm(300, generator=g)
    loss, gradient = loss_and_gradient(x, target, ignore_index=255)
    other_loss, other = loss_and_gradient(x[..., p], target[..., p], ignore_index=255)
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other, gradient[..., p])


def test_per_image_is_the_mean_of_single_images():
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(3, 4, 8, 8, generator=g, dtype=torch.float64), labels_with_holes(g, 4, 3, 8, 8)
    each = [segops.lovasz_softmax(a[None], b[None], ignore_index=255) for a, b in zip(x, target, strict=True)]
    torch.testing.assert_close(
        segops.lovasz_softmax(x, target, per_image=True, ignore_index=255, reduction="none"), torch.stack(each)
    )
    torch.testing.assert_close(
        segops.lovasz_softmax(x, target, per_image=True, ignore_index=255), torch.stack(each).mean()
    )


def test_the_result_does_not_depend_on_the_number_of_threads():
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 7, 100, 90, generator=g), labels_with_holes(g, 7, 2, 100, 90)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(x, target, ignore_index=255))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_everything_ignored_is_a_differentiable_zero(per_image, classes):
    x = torch.full((2, 3, 4, 5), torch.nan)
    loss, gradient = loss_and_gradient(
        x, torch.full((2, 4, 5), 255), ignore_index=255, per_image=per_image, classes=classes
    )
    assert loss == 0 and loss.dim() == 0
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("per_image", [False, True])
def test_empty_input_is_a_differentiable_zero(shape, per_image):
    loss, gradient = loss_and_gradient(
        torch.zeros(shape), torch.zeros(shape[0], *shape[2:], dtype=torch.long), per_image=per_image
    )
    assert loss == 0 and gradient.shape == shape


def test_one_valid_pixel():
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    target = torch.full((1, 4, 4), 255)
    target[0, 2, 1] = 1
    loss, gradient = loss_and_gradient(x, target, ignore_index=255)
    torch.testing.assert_close(loss, 1 - x.softmax(1)[0, 1, 2, 1])
    assert gradient[0, :, 2, 1].ne(0).all() and gradient.ne(0).sum() == 3


def test_an_absent_class_costs_its_largest_probability():
    p = torch.rand(1, 3, 6, 6).softmax(1)
    target = torch.randint(0, 2, (1, 6, 6))
    loss, gradient = loss_and_gradient(p, target, from_logits=False, classes=[2])
    assert loss == p[:, 2].max()
    assert gradient[0, 2].flatten().nonzero().tolist() == [[p[0, 2].argmax()]]
    assert gradient[0, 2].max() == 1


def test_ignored_pixels_have_no_gradient_even_where_logits_are_not_numbers():
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 4, 50, generator=g), labels_with_holes(g, 4, 2, 50)
    loss, gradient = loss_and_gradient(x, target, ignore_index=255)
    broken = torch.where((target == 255)[:, None], torch.nan, x)
    other_loss, other = loss_and_gradient(broken, target, ignore_index=255)
    assert torch.equal(other_loss, loss) and torch.equal(other, gradient)
    assert not gradient.movedim(1, -1)[target == 255].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_reach_the_loss_of_their_set_alone(bad):
    x = torch.randn(2, 3, 40, requires_grad=True)
    target = torch.randint(0, 3, (2, 40))
    x.data[1, 2, 7] = bad
    losses = segops.lovasz_softmax(x, target, per_image=True, reduction="none")
    assert losses[0].isfinite() and losses[1].isnan()
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert gradient[0].isfinite().all() and gradient[1].isnan().all()


def test_huge_logits():
    x = 1e4 * torch.randn(2, 5, 200)
    target = torch.randint(0, 5, (2, 200))
    loss, gradient = loss_and_gradient(x, target)
    assert abs(loss - segops.lovasz_softmax(x.double(), target)) <= 1e-6
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    x, target = torch.randn(2, 5, 30, 20).to(dtype), torch.randint(0, 5, (2, 30, 20))
    loss, gradient = loss_and_gradient(x, target)
    wide_loss, wide = loss_and_gradient(x.float(), target)
    assert loss.dtype == gradient.dtype == dtype
    assert torch.equal(loss, wide_loss.to(dtype)) and torch.equal(gradient, wide.to(dtype))


def test_autocast_returns_float32():
    x, target = torch.randn(2, 5, 6, 6, dtype=torch.bfloat16), torch.randint(0, 5, (2, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert segops.lovasz_softmax(x, target).dtype == torch.float32


def test_channels_last_and_narrow_labels():
    x, target = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    loss, gradient = loss_and_gradient(x, target)
    for other in (target.byte(), target.int(), target.mT.contiguous().mT):
        assert torch.equal(loss_and_gradient(x.to(memory_format=torch.channels_last), other)[1], gradient)


def test_the_public_function_compiles_whole():
    def step(x, target):
        return segops.lovasz_softmax(x, target, ignore_index=255, per_image=True)

    torch._dynamo.reset()
    x, target = torch.randn(2, 4, 9, 9, requires_grad=True), torch.randint(0, 4, (2, 9, 9))
    compiled = torch.compile(step, fullgraph=True)(x, target)
    torch.testing.assert_close(compiled, step(x, target))
    torch.testing.assert_close(
        torch.autograd.grad(compiled, x), torch.autograd.grad(step(x, target), x), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("label", [-1, 4, 254])
def test_a_label_out_of_range(label):
    target = torch.zeros(2, 5, 5, dtype=torch.long)
    target[1, 2, 3] = label
    with pytest.raises(ValueError, match=f"^target: expected labels from 0 to 3 or ignore_index = 255, got {label}$"):
        segops.lovasz_softmax(torch.zeros(2, 4, 5, 5), target, ignore_index=255)
    with pytest.raises(ValueError, match=f"^target: expected labels from 0 to 3, got {label}$"):
        segops.lovasz_softmax(torch.zeros(2, 4, 5, 5), target)


X, T = torch.zeros(2, 4, 5, 5), torch.zeros(2, 5, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("error", "message", "args", "options"),
    [
        (TypeError, "input: expected a tensor", ([1.0], T), {}),
        (TypeError, "input: expected float64, float32", (X.long(), T), {}),
        (TypeError, "input: expected a dense tensor", (X.to_sparse(), T), {}),
        (TypeError, "target: expected integer labels, got torch.float32", (X, T.float()), {}),
        (ValueError, "target: expected device cpu like input, got meta", (X, T.to("meta")), {}),
        (ValueError, r"target: expected shape \(N, ...\) for input .* got \(2, 5, 4\)", (X, T[..., :4]), {}),
        (ValueError, "target: expected shape", (X[:, :0], T), {}),
        (ValueError, "target: expected shape", (X[0, 0, 0], T[0, 0]), {}),
        (ValueError, "classes: expected one of 'present', 'all', got 'some'", (X, T), {"classes": "some"}),
        (TypeError, "classes: expected 'present', 'all' or a list of labels, got int", (X, T), {"classes": 3}),
        (TypeError, r"classes\[0\]: expected an integer, got float", (X, T), {"classes": [1.0]}),
        (ValueError, r"classes: expected labels from 0 to 3, each once, got \[4\]", (X, T), {"classes": [4]}),
        (ValueError, "classes: expected labels from 0 to 3, each once", (X, T), {"classes": [1, 1]}),
        (ValueError, "classes: expected labels from 0 to 3, each once", (X, T), {"classes": []}),
        (ValueError, "classes: expected labels from 1 to 1", (X[:, 0], T), {"classes": [0]}),
        (TypeError, "ignore_index: expected an integer, got float", (X, T), {"ignore_index": 255.0}),
        (ValueError, r"class_weight: expected shape \(4,\), got \(3,\)", (X, T), {"class_weight": torch.ones(3)}),
        (TypeError, "class_weight: expected a tensor", (X, T), {"class_weight": [1.0] * 4}),
        (ValueError, "reduction: expected one of 'mean', 'sum', 'none', got 'max'", (X, T), {"reduction": "max"}),
    ],
)
def test_bad_input(error, message, args, options):
    with pytest.raises(error, match=f"^{message}"):
        segops.lovasz_softmax(*args, **options)
