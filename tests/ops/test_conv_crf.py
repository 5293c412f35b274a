"""segops.conv_crf: the exact dense CRF cut to a window, the published code's golden case, gradients, bad input."""

from __future__ import annotations

import golden_crf
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops._registry import call
from segops.reference.mean_field import mean_field_with, normalized

GOLDEN = golden_crf.load("crf_convcrf_64x48_L3")
SIGMAS = {"spatial_sigma": (2.0, 3.0), "bilateral_sigma_xy": (5.0, 4.0), "bilateral_sigma_rgb": 20.0}


def scene(n: int, labels: int, height: int, width: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randint(0, 256, (n, channels, height, width)).double()
    return 2 * torch.randn(n, labels, height, width, dtype=torch.float64), image


def cut_kernels(image: torch.Tensor, reach: int) -> list[torch.Tensor]:
    """The spatial and the bilateral kernel matrix (P, P) of one image, 0 between pixels that share no window."""
    channels, height, width = image.shape
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    near = torch.ones(height * width, height * width, dtype=torch.bool)
    for axis in (x.flatten(), y.flatten()):
        near &= (axis[:, None] - axis).abs() <= reach
    spatial = torch.stack([x / 2, y / 3]).flatten(1)
    bilateral = torch.cat([torch.stack([x / 5, y / 4]), image / 20]).flatten(1)
    return [torch.exp(-0.5 * (f[:, :, None] - f[:, None]).square().sum(0)) * near for f in (spatial, bilateral)]


@pytest.mark.parametrize("normalization", ["none", "symmetric", "before", "after"])
@pytest.mark.parametrize("filter_size", [1, 5, 41])
def test_the_dense_crf_cut_to_the_window(normalization, filter_size):
    logits, image = scene(1, 4, 9, 19)
    filters = []
    for kernel in cut_kernels(image[0], filter_size // 2):

        def filter(values: torch.Tensor, kernel: torch.Tensor = kernel) -> torch.Tensor:
            return values @ kernel.T

        filters.append(normalized(filter, kernel.sum(1)[None, None], normalization))
    compatibility = torch.randn(4, 4, dtype=torch.float64)
    energy = torch.stack([1.5 * compatibility, 0.7 * compatibility])
    expected = mean_field_with(filters, logits.flatten(2), energy, 3).view(logits.shape)
    actual = segops.conv_crf(
        logits, image, filter_size=filter_size, blur=1, iterations=3, unary_weight=1, spatial_weight=1.5,
        bilateral_weight=0.7, compatibility=compatibility, normalization=normalization, **SIGMAS,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_a_window_as_large_as_the_image_is_the_exact_dense_crf():
    logits, image = scene(2, 3, 8, 11)
    expected = segops.dense_crf(logits, image, algorithm="exact", normalization="symmetric", **SIGMAS)
    actual = segops.conv_crf(
        logits, image, filter_size=23, blur=1, unary_weight=1, spatial_weight=3, bilateral_weight=10,
        normalization="symmetric", **SIGMAS,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


PUBLISHED = {
    "default": {},
    "f7b1_sym": {
        "filter_size": 7, "blur": 1, "normalization": "symmetric", "unary_weight": 1, "spatial_weight": 3,
        "bilateral_weight": 10, "bilateral_sigma_xy": 80,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_code(name, dtype):
    logits, image = torch.from_numpy(GOLDEN["logits"])[None].to(dtype), torch.from_numpy(GOLDEN["image"])
    actual = segops.conv_crf(logits, image.permute(2, 0, 1)[None], start="log_softmax", **PUBLISHED[name])
    torch.testing.assert_close(actual[0].float(), torch.from_numpy(GOLDEN[f"Q_{name}"]), rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 90)),
    labels=st.integers(1, 20),
    channels=st.integers(1, 5),
    filter_size=st.integers(0, 6).map(lambda i: 2 * i + 1),
    blur=st.integers(1, 5),
    normalization=st.sampled_from(["none", "symmetric", "before", "after"]),
)
def test_any_sizes_agree_with_the_reference(size, labels, channels, filter_size, blur, normalization):
    torch.manual_seed(labels)
    logits, image = scene(1, labels, *size, channels)
    options = {"filter_size": filter_size, "blur": blur, "normalization": normalization, "iterations": 2, **SIGMAS}
    actual = segops.conv_crf(logits, image, **options)
    with segops.backend("reference"):
        expected = segops.conv_crf(logits, image, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    assert actual.shape == logits.shape


def by_pixels(logits, image, energy, blur: int, normalization: str, start: str, weights: torch.Tensor) -> torch.Tensor:
    """The CRF as its pages write it: every map of full size, the cells only inside the filter."""
    height, width = logits.shape[2:]
    top, left = (-(-(-size % blur) // 2) for size in (height, width))
    at = (blur * torch.arange(-2, 3).double()).square()
    window = torch.exp(-0.5 * (at / 9 + at[:, None] / 4))

    def pool(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, blur, padding=(top, left), count_include_pad=False)

    colors = pool(image / 20)

    def filter(values: torch.Tensor, which: int) -> torch.Tensor:
        tables = [window if which == 0 else 0 * window, torch.ones_like(window) if which == 1 else 0 * window]
        out = torch.ops.segops.conv_crf_message(pool(values), colors, *tables)
        wide = F.interpolate(out, scale_factor=blur, mode="bilinear")
        return wide[..., top : top + height, left : left + width]

    ones = torch.ones_like(image[:, :1])
    filters = [normalized(lambda x, i=i: filter(x, i), filter(ones, i), normalization) for i in (0, 1)]
    unary = state = logits.log_softmax(1)
    for step in range(3):
        state = state.softmax(1) if step or start == "softmax" else state
        message = 0.6 * filters[0](state) + 0.3 * filters[1](state)
        state = weights[:, None, None] * unary - torch.einsum("kl,nlhw->nkhw", energy, message)
    return state


@pytest.mark.parametrize(
    ("blur", "normalization", "start"),
    [(4, "none", "softmax"), (3, "none", "log_softmax"), (4, "symmetric", "log_softmax"), (2, "after", "softmax")],
)
def test_what_is_done_in_cells_is_what_pixels_would_have(blur, normalization, start):
    logits, image = scene(2, 4, 13, 22)
    energy, weights = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0.8, 1.2, 1.0, 0.5]).double()
    expected = by_pixels(logits, image, energy, blur, normalization, start, weights)
    options = {
        "filter_size": 5, "blur": blur, "iterations": 3, "unary_weight": weights, "spatial_sigma": (3, 2),
        "spatial_weight": 0.6, "bilateral_sigma_rgb": 20, "bilateral_weight": 0.3, "compatibility": energy,
        "normalization": normalization, "start": start,
    }  # fmt: skip
    actual = segops.conv_crf(logits, image, return_logits=True, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(segops.conv_crf(logits, image, **options), expected.softmax(1), rtol=1e-9, atol=1e-10)


def test_a_cell_larger_than_the_map():
    logits, image = scene(1, 3, 6, 9)
    expected = segops.conv_crf(logits, image, blur=9)
    torch.testing.assert_close(segops.conv_crf(logits, image, blur=10**12), expected)
    mean = logits.softmax(1).mean((2, 3), keepdim=True)
    energy = 0.8 * logits.log_softmax(1) + 2.6 * mean
    torch.testing.assert_close(segops.conv_crf(logits, image, blur=9, iterations=1), energy.softmax(1))


def test_of_full_size_the_logits_alone_are_kept_for_gradients():
    logits, image = (x.float() for x in scene(1, 4, 24, 36))
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        segops.conv_crf(logits.requires_grad_(), image, filter_size=5)
    assert [x.data_ptr() for x in kept.values() if x.numel() >= logits.numel()] == [logits.data_ptr()]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_labels_that_are_impossible_and_pixels_that_are_no_number(backend):
    logits, message = torch.randn(1, 3, 8, 20), torch.randn(1, 3, 2, 5)
    logits[0, 1, 2, 3], logits[0, 2, 5, 17] = -float("inf"), float("nan")
    with segops.backend(backend):
        out = torch.ops.segops.conv_crf_update(logits, message, torch.full((1,), 0.8), 4, True, False)
        means = torch.ops.segops.conv_crf_update(logits, message, torch.full((1,), 0.8), 4, True, True)
    assert out[0, 1, 2, 3] == 0 and out[0, :, 2, 3].sum() == pytest.approx(1)
    assert out.isnan().nonzero().tolist() == [[0, i, 5, 17] for i in range(3)]
    assert means.isnan().nonzero().tolist() == [[0, i, 1, 4] for i in range(3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 8, 20)}, r"logits: expected \(N, L, H, W\)"),
        ({"message": torch.zeros(1, 3, 2, 4)}, "message: expected"),
        ({"message": torch.zeros(1, 3, 2, 5).double()}, "message: expected"),
        ({"weight": torch.ones(2)}, "weight: expected one"),
        ({"blur": 0}, "blur: expected"),
    ],
)
def test_the_kernel_refuses_what_does_not_fit(change, message):
    args = {"logits": torch.zeros(1, 3, 8, 20), "message": torch.zeros(1, 3, 2, 5), "weight": torch.ones(1), "blur": 4}
    with pytest.raises(ValueError, match=message), segops.backend("cpu"):
        call(torch.ops.segops.conv_crf_update, *(args | change).values(), True, True)


@pytest.mark.parametrize("blur", [1, 3])
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_everything_can_be_learnt(blur, normalization):
    logits, image = scene(1, 3, 6, 7, 2)
    inputs = [
        logits, image / 50,
        *(torch.tensor(x, dtype=torch.float64) for x in (0.9, [1.5, 2.0], 0.7, [3.0, 2.5], [1.2, 0.8], 1.1)),
        torch.randn(3, 3, dtype=torch.float64),
    ]  # fmt: skip
    names = (
        "unary_weight", "spatial_sigma", "spatial_weight", "bilateral_sigma_xy", "bilateral_sigma_rgb",
        "bilateral_weight", "compatibility",
    )  # fmt: skip

    def function(logits, image, *rest):
        options = dict(zip(names, rest, strict=True))
        return segops.conv_crf(
            logits, image, filter_size=5, blur=blur, iterations=2, normalization=normalization, **options
        )

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs], fast_mode=True)


def test_a_weight_for_each_label():
    logits, image = scene(1, 3, 6, 7)
    weight = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    actual = segops.conv_crf(logits, image, unary_weight=weight, spatial_weight=0, bilateral_weight=0, iterations=1)
    torch.testing.assert_close(actual, (weight[:, None, None] * logits.log_softmax(1)).softmax(1))


def test_marginals_logits_and_no_iterations():
    logits, image = scene(2, 3, 6, 7)
    out = segops.conv_crf(logits, image)
    torch.testing.assert_close(out.sum(1), torch.ones(2, 6, 7, dtype=torch.float64))
    torch.testing.assert_close(segops.conv_crf(logits, image, return_logits=True).softmax(1), out)
    torch.testing.assert_close(segops.conv_crf(logits, image, iterations=0), logits.softmax(1))


def test_a_diagonal_and_potts_are_matrices():
    logits, image = scene(1, 3, 6, 7)
    potts = segops.conv_crf(logits, image)
    for energy in (-torch.ones(3), -torch.eye(3)):
        torch.testing.assert_close(segops.conv_crf(logits, image, compatibility=energy), potts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    logits, image = scene(1, 3, 12, 13)
    out = segops.conv_crf(logits.to(dtype), image.byte())
    assert out.dtype == dtype
    expected = segops.conv_crf(logits.to(dtype).double(), image)
    assert (out.double() - expected).norm() <= torch.finfo(dtype).eps * expected.norm()


def test_autocast_computes_in_float32():
    logits, image = (x.float() for x in scene(1, 3, 12, 13))
    options = {"compatibility": torch.randn(3, 3), "blur": 2, "normalization": "symmetric"}
    expected = segops.conv_crf(logits.bfloat16().float(), image, **options)
    with torch.autocast("cpu", torch.bfloat16):
        actual = segops.conv_crf(logits.bfloat16(), image, **options)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


def test_what_is_not_finite_stays_within_reach():
    logits, image = (x.float() for x in scene(1, 3, 20, 90))
    logits[0, 1, 4, 70] = float("nan")
    out = segops.conv_crf(logits, image, filter_size=5, blur=1, iterations=1)
    wrong = out.isnan().any(1)[0]
    assert wrong[2:7, 68:73].all() and wrong.sum() == 25


X, IMAGE = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((None, IMAGE), {}, TypeError, "logits: expected a tensor"),
        ((X[0], IMAGE), {}, ValueError, "logits: expected 4 dimensions"),
        ((X.long(), IMAGE), {}, TypeError, "logits: expected float64"),
        ((X[:, :0], IMAGE), {}, ValueError, "logits: expected at least one channel"),
        ((X, IMAGE[0]), {}, ValueError, "image: expected 4 dimensions"),
        ((X, IMAGE[..., :2]), {}, ValueError, r"image: expected shape \(2, C, 4, 5\)"),
        ((X, IMAGE.to("meta")), {}, ValueError, "image: expected device cpu like logits"),
        ((X, IMAGE), {"filter_size": 4}, ValueError, "filter_size: expected an odd integer >= 1, got 4"),
        ((X, IMAGE), {"filter_size": 3.0}, TypeError, "filter_size: expected an integer"),
        ((X, IMAGE), {"blur": 0}, ValueError, "blur: expected an integer >= 1, got 0"),
        ((X, IMAGE), {"iterations": -1}, ValueError, "iterations: expected an integer >= 0"),
        ((X, IMAGE), {"unary_weight": float("nan")}, ValueError, "unary_weight: expected a finite number"),
        ((X, IMAGE), {"unary_weight": torch.ones(2)}, ValueError, "unary_weight: expected one element or 3"),
        ((X, IMAGE), {"spatial_weight": torch.ones(3)}, ValueError, "spatial_weight: expected one element, got"),
        ((X, IMAGE), {"bilateral_weight": "1"}, TypeError, "bilateral_weight: expected a number"),
        ((X, IMAGE), {"spatial_sigma": 0}, ValueError, r"spatial_sigma: expected a finite number > 0"),
        ((X, IMAGE), {"bilateral_sigma_xy": (1, 2, 3)}, ValueError, "bilateral_sigma_xy: expected one number or 2"),
        ((X, IMAGE), {"bilateral_sigma_rgb": torch.ones(2)}, ValueError, "bilateral_sigma_rgb: expected one element or 3"),
        ((X, IMAGE), {"bilateral_sigma_rgb": torch.ones(3).long()}, TypeError, "bilateral_sigma_rgb: expected float64"),
        ((X, IMAGE), {"compatibility": torch.ones(2)}, ValueError, r"compatibility: expected shape \(3,\)"),
        ((X, IMAGE), {"compatibility": 1}, TypeError, "compatibility: expected None or a tensor"),
        ((X, IMAGE), {"normalization": "sym"}, ValueError, "normalization: expected one of"),
        ((X, IMAGE), {"start": "zero"}, ValueError, "start: expected one of"),
    ],
)  # fmt: skip
def test_bad_input_is_named(args, options, error, message):
    with pytest.raises(error, match=message):
        segops.conv_crf(*args, **options)
