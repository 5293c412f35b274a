"""segops.point_sample: golden cases, PointRend's uses, F.grid_sample over random shapes, points that are not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import segops
from segops.testing import poisoned_memory

GOLDEN = Path(__file__).parent.parent / "golden" / "point_sample.npz"
MODES, PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")
BACKENDS = ("cpu", "triton", "reference")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN).items()}


def grid_sample(input, points, mode, padding_mode, align_corners):
    flat = points.flatten(1, -2)[:, :, None]
    out = F.grid_sample(input, 2 * flat - 1, mode, padding_mode, align_corners)[..., 0]
    return out.unflatten(2, points.shape[1:-1])


def smooth(points: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Points that do not lie on the centre of a row or column, where a bilinear surface has two derivatives."""
    sides = torch.tensor([size[1], size[0]], dtype=torch.float64)
    cells = points.double() * (sides - 1) if align_corners else points.double() * sides - 0.5
    return ((cells - cells.round()).abs() > 1e-5).all(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("mode", "padding"), [*(("bilinear", p) for p in PADDINGS), ("nearest", "zeros")])
def test_golden(golden, mode, padding, align, backend):
    x, points = golden["x"].clone().requires_grad_(), golden["pts"][:, :51].clone().requires_grad_()
    with segops.backend(backend):
        out = segops.point_sample(x, points, mode=mode, padding_mode=padding, align_corners=align)
        dx, dpoints = torch.autograd.grad(out, (x, points), golden["gout"])
    name = f"{mode}_ac{int(align)}_{padding}"
    torch.testing.assert_close(out, golden[f"{name}_out"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(dx, golden[f"{name}_dx"], rtol=1e-5, atol=4e-6)
    there = smooth(points.detach(), x.shape[2:], align)
    assert there.sum() > 80
    torch.testing.assert_close(dpoints[there], golden[f"{name}_dpts"][there], rtol=1e-5, atol=5e-5)


def test_golden_points_in_more_dimensions(golden):
    out = segops.point_sample(golden["x"], golden["pts4"])
    torch.testing.assert_close(out, golden["pts4_out"], rtol=1e-5, atol=2e-6)


def test_golden_mmcv_bilinear_grid_sample(golden):
    for align in (False, True):
        out = segops.point_sample(golden["x"], golden["pts"][:, :51], align_corners=align)
        torch.testing.assert_close(out, golden[f"mmcv_bgs_ac{int(align)}_out"], rtol=1e-5, atol=5e-6)


def in_image(boxes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Points relative to boxes (R, 4) as x0, y0, x1, y1 to coordinates of the image."""
    return boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])


def test_golden_points_of_boxes_on_two_levels(golden):
    """PointRend's fine-grained features: the boxes of each image, on feature maps of several scales."""
    side = torch.arange(4) / 4 + 1 / 8
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).flatten(0, 1)[None]
    torch.testing.assert_close(grid, golden["reg_grid"])
    torch.testing.assert_close(in_image(golden["boxes"], golden["roi_rel"]), golden["roi_abs"])
    scaled = golden["roi_abs"] * 0.25 / torch.tensor([24.0, 16.0])
    torch.testing.assert_close(scaled, golden["mmcv_roi_relimg"])

    where = in_image(golden["fg_boxes"], golden["roi_rel"])
    torch.testing.assert_close(where, golden["fg_wrt"])
    maps, first, outs = [golden["fg_f1"], golden["fg_f2"]], 0, []
    size = torch.tensor(maps[0].shape[:1:-1]) / golden["fg_scales"][0]
    for n, count in enumerate(golden["fg_box_counts"].tolist()):
        points = (where[first : first + count] / size)[None]
        outs.append(segops.point_sample([x[n : n + 1] for x in maps], points)[0].movedim(0, 1))
        first += count
    torch.testing.assert_close(torch.cat(outs), golden["fg_out"], rtol=1e-5, atol=2e-6)


SIZES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3), channels=st.sampled_from([0, 1, 3, 8, 21, 70]), height=SIZES, width=SIZES,
    points=st.integers(0, 40), mode=st.sampled_from(MODES), padding=st.sampled_from(PADDINGS), align=st.booleans(),
    layout=st.sampled_from(["planes", "cells", "sliced"]), backend=st.sampled_from(BACKENDS),
)  # fmt: skip
def test_any_shape_is_grid_sample(batch, channels, height, width, points, mode, padding, align, layout, backend):
    g = torch.Generator().manual_seed(channels + points)
    x = torch.randn(batch, channels, height, width, generator=g, dtype=torch.float64)
    if layout == "cells":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        x = torch.cat([x, x], 3)[..., :width]
    at = 6 * torch.rand(batch, points, 2, generator=g, dtype=torch.float64) - 2.5
    at[:, ::3] = torch.randint(-16, 17, at[:, ::3].shape, generator=g) / 8  # exactly on centres, edges and halves
    x.requires_grad_(), at.requires_grad_()
    expected = grid_sample(x, at, mode, padding, align)
    with segops.backend(backend), poisoned_memory():
        out = segops.point_sample(x, at, mode=mode, padding_mode=padding, align_corners=align)
        actual = torch.autograd.grad(out, (x, at), torch.ones_like(out).cumsum(-1))
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    wanted = torch.autograd.grad(expected, (x, at), torch.ones_like(out).cumsum(-1))
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert out.is_contiguous()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_keep_the_layout(backend, layout):
    x = torch.randn(2, 12, 30, 41).contiguous(memory_format=layout).requires_grad_()
    points = torch.rand(2, 300, 2)
    with segops.backend(backend):
        (grad,) = torch.autograd.grad(segops.point_sample(x, points).square().sum(), x)
    assert grad.is_contiguous(memory_format=layout)
    (peer,) = torch.autograd.grad(grid_sample(x, points, "bilinear", "zeros", False).square().sum(), x)
    torch.testing.assert_close(grad, peer, rtol=1e-4, atol=1e-4)


def test_large_planes_are_read_and_zeroed_in_stretches():
    """Few points and many, on planes longer than what is read or zeroed ahead."""
    x = torch.randn(1, 9, 130, 301, dtype=torch.float64, requires_grad=True)
    for count in (5, 3000):
        points = (1.2 * torch.rand(1, count, 2, dtype=torch.float64) - 0.1).requires_grad_()
        out, peer = segops.point_sample(x, points), grid_sample(x, points, "bilinear", "zeros", False)
        direction = torch.randn_like(out)
        torch.testing.assert_close(out, peer, rtol=1e-11, atol=1e-11)
        wanted = torch.autograd.grad(peer, (x, points), direction)
        with poisoned_memory():
            actual = torch.autograd.grad(out, (x, points), direction)
        for a, b in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_work_for_gradients_nobody_wants_is_not_done():
    x, points = torch.randn(1, 3, 5, 5), torch.rand(1, 4, 2)
    options = "bilinear", "zeros", False
    only_points = torch.ops.segops.point_sample(points.clone().requires_grad_(), [x], *options)
    only_x = torch.ops.segops.point_sample(points, [x.clone().requires_grad_()], *options)
    assert len(only_points.grad_fn.saved_tensors) == 2  # the map too: the derivative needs it
    assert len(only_x.grad_fn.saved_tensors) == 1  # of the map the shape is enough
    called = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func._schema.name.rpartition("_")[2])
            return func(*args, **(kwargs or {}))

    for out, wanted in ((only_points, "points"), (only_x, "input")):
        called.clear()
        with Recorder():
            out.sum().backward()
        assert {"points", "input"} & set(called) == {wanted}


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [2, 9])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_points_that_are_not_finite(backend, mode, channels, layout):
    x = torch.arange(1.0, 7).expand(1, channels, 6).reshape(1, channels, 2, 3).contiguous(memory_format=layout)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    points = torch.tensor([[[NAN, 0.5], [0.5, NAN], [INF, 0.25], [-INF, INF], [NAN, INF]]], requires_grad=True)
    expected = {
        "zeros": [NAN, NAN, 0, 0, NAN],
        "border": [NAN, NAN, 3, 4, NAN],
        "reflection": [NAN, NAN, NAN, NAN, NAN],
    }
    for padding, values in expected.items():
        with segops.backend(backend):
            out = segops.point_sample(x, points, mode=mode, padding_mode=padding)
            dx, dpoints = torch.autograd.grad(out.sum(), (x, points))
        torch.testing.assert_close(out[0, -1], torch.tensor(values), equal_nan=True)
        assert torch.isfinite(dx).all()
        assert (dpoints == 0).all()
        assert float(dx.sum()) == (2 * channels if padding == "border" else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_points_stay_in_bounds(backend, mode, align, dtype):
    x = torch.arange(1.0, 13, dtype=dtype).reshape(1, 1, 3, 4).requires_grad_()
    far = torch.tensor([1e30, -1e30, torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype)
    points = torch.cartesian_prod(far, far)[None].requires_grad_()
    for padding in PADDINGS:
        with segops.backend(backend):
            out = segops.point_sample(x, points, mode=mode, padding_mode=padding, align_corners=align)
            dx, dpoints = torch.autograd.grad(out.sum(), (x, points))
        assert torch.isfinite(out).all() and torch.isfinite(dx).all() and torch.isfinite(dpoints).all()
        if padding == "zeros":
            assert (out == 0).all()
        if padding == "border":
            assert set(out.unique().tolist()) == {1.0, 4.0, 9.0, 12.0}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cells_that_a_point_does_not_touch_do_not_matter(layout):
    """An infinity next to the border, whose weight is that of a cell out of bounds."""
    x = torch.ones(1, 9, 2, 2)
    x[..., 1] = INF
    points = torch.tensor([[[-0.1, 0.25], [0.1, -0.1], [1.1, 0.5], [1.2, 1.2]]])
    x = x.contiguous(memory_format=layout)
    for padding in PADDINGS:
        out = segops.point_sample(x, points, padding_mode=padding)
        torch.testing.assert_close(out, grid_sample(x, points, "bilinear", padding, False), equal_nan=True)


def test_nearest_rounds_halves_to_even():
    x = torch.arange(8.0).view(1, 1, 1, 8)
    points = torch.stack([torch.arange(1, 8) / 8, torch.full((7,), 0.5)], -1)[None]
    out = segops.point_sample(x, points, mode="nearest")
    assert out.flatten().tolist() == [0, 2, 2, 4, 4, 6, 6]


def test_deterministic_triton_sums_in_order():
    """Many points in one cell: the run of one lane; bit for bit what a loop over the points gives."""
    values = torch.randn(1, 3, 200) * 10 ** (4 * torch.rand(1, 3, 200))
    points = torch.full((1, 200, 2), 0.3)
    arguments = (values, points, 2, 2, False, "nearest", "zeros", False)
    with segops.backend("triton"):
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            out = torch.ops.segops.point_sample_backward_input(*arguments)
        finally:
            torch.use_deterministic_algorithms(before)
    expected = torch.zeros(3)
    for value in values[0].T:
        expected += value
    assert torch.equal(out[0, :, 0, 0], expected)
    assert (out.flatten(2)[..., 1:] == 0).all()


def test_the_same_on_any_number_of_threads():
    x = torch.randn(1, 21, 60, 70, requires_grad=True)
    points = torch.rand(1, 5000, 2, requires_grad=True)
    threads, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            out = segops.point_sample(x, points)
            outs.append((out, *torch.autograd.grad(out.square().sum(), (x, points))))
    finally:
        torch.set_num_threads(threads)
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, outs[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype):
    x, points = torch.randn(1, 3, 5, 6).to(dtype), torch.rand(1, 7, 2)
    out = segops.point_sample(x, points)
    assert out.dtype == dtype
    torch.testing.assert_close(out, segops.point_sample(x.float(), points).to(dtype))


X, P = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 2)


@pytest.mark.parametrize(
    ("input", "points", "options", "error", "message"),
    [
        (X[0], P, {}, ValueError, r"input: expected 4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
        ([X, X[:1]], P, {}, ValueError, r"input\[1\]: expected N = 2 like input\[0\], got shape \(1, 3, 4, 5\)"),
        ([X, X.double()], P, {}, TypeError, r"input\[1\]: expected torch.float32 like input\[0\], got torch.float64"),
        ([], P, {}, ValueError, "input: expected at least one map, got none"),
        ("map", P, {}, TypeError, r"input: expected a tensor \(N, C, H, W\) or a list of them, got str"),
        (X[:, :, :0], P, {}, ValueError, r"input: expected at least one cell, got shape \(2, 3, 0, 5\)"),
        (X.long(), P, {}, TypeError, "input: expected float64, .* got torch.int64"),
        (X, P[:1], {}, ValueError, r"points: expected shape \(2, ..., 2\) to go with input, got \(1, 6, 2\)"),
        (X, torch.rand(2, 6, 3), {}, ValueError, r"points: expected shape \(2, ..., 2\) .*, got \(2, 6, 3\)"),
        (X, torch.rand(2), {}, ValueError, r"points: expected 2 dimensions \(N, ..., 2\), got shape \(2,\)"),
        (X, P.long(), {}, TypeError, "points: expected float64, .* got torch.int64"),
        (X, None, {}, TypeError, r"points: expected a tensor \(N, ..., 2\), got NoneType"),
        (X, P.to("meta"), {}, ValueError, "points: expected device cpu like input, got meta"),
        (X, P, {"mode": "bicubic"}, ValueError, "mode: expected one of 'bilinear', 'nearest', got 'bicubic'"),
        (X, P, {"padding_mode": "wrap"}, ValueError, "padding_mode: expected one of .*, got 'wrap'"),
    ],
)
def test_bad_arguments(input, points, options, error, message):
    with pytest.raises(error, match=message):
        segops.point_sample(input, points, **options)
