"""segops.distance_transform: SciPy's numbers, several labels at once, images without a zero, sizes, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import segops

BACKENDS = ("cpu", "triton", "reference")


def scipy_distance(mask: torch.Tensor) -> torch.Tensor:
    """(N, H, W), infinite in images without a zero."""
    images = [ndimage.distance_transform_edt(m.numpy()) if not m.all() else np.full(m.shape, np.inf) for m in mask]
    return torch.from_numpy(np.stack(images)).float()


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3), height=st.integers(1, 60), width=st.integers(1, 60),
    zeros=st.sampled_from([0.5, 0.1, 0.01, 0.001]), smooth=st.booleans(), threads=st.sampled_from([1, 3]),
    backend=st.sampled_from(["cpu", "cpu", "reference"]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_equals_scipy(batch, height, width, zeros, smooth, threads, backend, seed):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, height, width, generator=g) >= zeros
    if smooth:
        mask = mask[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with segops.backend(backend):
            actual = segops.distance_transform(mask)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(actual, scipy_distance(mask))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_zero_far_away(backend):
    """Blocks without any zero, rows without any, columns without any."""
    mask = torch.ones(2, 18, 70, dtype=torch.bool)
    mask[0, 17, 3] = False
    mask[1, :, 66] = False
    with segops.backend(backend):
        assert torch.equal(segops.distance_transform(mask), scipy_distance(mask))


@pytest.mark.parametrize("shape", [(1, 3, 6000), (1, 6000, 3), (1, 4096, 64)])
def test_squares_beyond_float32(shape):
    """Above 2^24 a squared distance is no float32; the root is rounded once all the same."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 0, 0] = False
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape[1:]), indexing="ij")
    assert torch.equal(segops.distance_transform(mask)[0], (y * y + x * x).sqrt().float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_zero_everything_is_infinitely_far(backend):
    mask = torch.ones(3, 4, 5)
    mask[1] = 0
    with segops.backend(backend):
        distance = segops.distance_transform(mask)
    assert torch.equal(distance, torch.tensor([math.inf, 0, math.inf])[:, None, None].expand(3, 4, 5))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 30), width=st.integers(1, 30), labels=st.integers(1, 5), size=st.sampled_from([1, 3, 7]),
    dtype=st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_labels_are_the_masks_of_each(height, width, labels, size, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(0, labels, (height // size + 1, width // size + 1), generator=g)
    image = image.repeat_interleave(size, 0).repeat_interleave(size, 1)[:height, :width]
    expected = torch.zeros(height, width)
    for label in range(1, labels):
        expected += segops.distance_transform(image == label).where(image == label, torch.zeros(()))
    assert torch.equal(segops.distance_transform(image.to(dtype), multilabel=True), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64, torch.complex64])
def test_whatever_is_not_zero_counts(dtype):
    mask = torch.randint(0, 2, (2, 3, 7, 6))
    expected = scipy_distance(mask.flatten(0, 1).bool()).view(mask.shape)
    assert torch.equal(segops.distance_transform(mask.to(dtype) * (1 if dtype == torch.bool else 3)), expected)
    assert torch.equal(segops.distance_transform(mask.to(dtype)[1, 2]), expected[1, 2])


def test_nan_is_not_zero():
    assert segops.distance_transform(torch.tensor([[0.0, math.nan, -0.0]])).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (3, 2, 4, 0), (0, 0)])
def test_empty(shape):
    assert segops.distance_transform(torch.ones(shape)).shape == shape


def test_layouts_and_gradients():
    mask = (torch.rand(3, 12, 9) < 0.8).float().requires_grad_()
    expected = segops.distance_transform(mask.detach())
    other = segops.distance_transform(mask.mT.contiguous().mT)
    assert torch.equal(other, expected)
    assert not other.requires_grad


@pytest.mark.parametrize(
    ("mask", "multilabel", "error", "message"),
    [
        (torch.ones(5), False, ValueError, r"mask: expected at least 2 dimensions \(..., H, W\), got shape \(5,\)"),
        (torch.ones(2, 5), True, TypeError, "mask: expected integer labels, got torch.float32"),
        (np.ones((2, 5)), False, TypeError, r"mask: expected a tensor \(..., H, W\), got ndarray"),
        (torch.ones(2, 5).to_sparse(), False, TypeError, "mask: expected a dense tensor, got layout"),
        (torch.ones(1, 1).expand(2, 1 << 25), False, ValueError, "mask: expected sides of at most 16777216, got shape"),
    ],
)
def test_bad_arguments(mask, multilabel, error, message):
    with pytest.raises(error, match=message):
        segops.distance_transform(mask, multilabel=multilabel)


def test_the_operator_guards_its_memory():
    with pytest.raises(RuntimeError, match=r"expected labels \(N, H, W\)"):
        torch.ops.segops.distance_transform(torch.ones(2, 5, dtype=torch.uint8))
