"""psa_collect and psa_distribute: golden values, transposes, windows by brute force, bad input."""

from __future__ import annotations

import math

import golden_crf
import pytest
import torch
from halves import assert_summed_in_float32
from hypothesis import given, settings
from hypothesis import strategies as st

import segops
from segops.reference import psa as reference
from segops.reference.psa_mask import psa_mask

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("psa").items()}
CASES = ("oc", "half", "small", "mixed", "over", "row", "one")
MODES = ("collect", "distribute")
FUNCTIONS = {"collect": segops.psa_collect, "distribute": segops.psa_distribute}


def close(actual: torch.Tensor, expected: torch.Tensor, eps: float = 2e-6) -> bool:
    return bool((actual.double() - expected.double()).norm() <= eps * expected.double().norm())


def mask_size(case: str) -> tuple[int, ...]:
    return tuple(GOLDEN[f"{case}_mask_hw"].tolist())


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, mode, softmax):
    value, masks = GOLDEN[f"{case}_x"].requires_grad_(), GOLDEN[f"{case}_mask"].requires_grad_()
    out = FUNCTIONS[mode](value, masks, mask_size(case), softmax=softmax)
    actual = dict(zip(("dx", "dmask"), torch.autograd.grad(out, (value, masks), GOLDEN[f"{case}_gout"]), strict=True))
    for name, result in {"out": out, **actual}.items():
        wanted = GOLDEN[f"{case}_{mode}_{'sm' if softmax else 'raw'}_{name}"]
        assert close(result, wanted.view_as(result)), name


@pytest.mark.parametrize("mode", MODES)
def test_compact_is_that_of_semseg(mode):
    entries = GOLDEN["compact_y"].double()
    n, count, height, width = entries.shape
    value = torch.randn(n, 5, height, width, dtype=torch.float64)
    m = GOLDEN[f"compact_semseg_{mode}"].double().view(n, count, count)
    for softmax, weights in ((False, m), (True, m.softmax(1))):
        expected = (value.flatten(2) @ weights).view_as(value)
        torch.testing.assert_close(FUNCTIONS[mode](value, entries, softmax=softmax, compact=True), expected)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    channels=st.integers(1, 110),
    height=st.integers(1, 16),
    width=st.integers(1, 40),
    mask=st.tuples(st.integers(0, 18), st.integers(0, 18)),
    softmax=st.booleans(),
)
def test_any_sizes_agree_with_the_definition(mode, channels, height, width, mask, softmax):
    torch.manual_seed(height)
    rows, columns = 2 * mask[0] + 1, 2 * mask[1] + 1
    value = torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, rows * columns, height, width, dtype=torch.float64, requires_grad=True)
    out = FUNCTIONS[mode](value, masks, (rows, columns), softmax=softmax)
    expected, _ = reference.psa(value, masks, mode, rows, columns, False, softmax)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-11)
    direction = torch.randn_like(out)
    actual = torch.autograd.grad(out, (value, masks), direction)
    wanted = torch.autograd.grad(expected, (value, masks), direction)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-11)
    assert torch.equal(segops.psa_mask(masks, mode, (rows, columns)), psa_mask(masks, mode, rows, columns))


@pytest.mark.parametrize("size", [None, (3, 7)])
def test_collect_and_distribute_are_transposes(size):
    masks = torch.randn(2, 21 if size else 15 * 11, 8, 6, dtype=torch.float64)
    collect, distribute = (segops.psa_mask(masks, mode, size).flatten(2) for mode in MODES)
    assert torch.equal(collect, distribute.mT)
    x, y = torch.randn(2, 2, 3, 8, 6, dtype=torch.float64)
    x, y = x[:1], y[:1]
    taken = segops.psa_collect(x, masks[:1], size, softmax=False)
    given_back = segops.psa_distribute(y, masks[:1], size, softmax=False)
    torch.testing.assert_close((taken * y).sum(), (x * given_back).sum())


@pytest.mark.parametrize("mode", MODES)
def test_weights_of_a_receiver_sum_to_one(mode):
    """Over the sources in both modes, and in a mask that is too small for the map too."""
    for rows, columns in ((17, 13), (3, 5)):
        masks = torch.randn(1, rows * columns, 9, 7, dtype=torch.float64)
        out = FUNCTIONS[mode](torch.ones(1, 2, 9, 7, dtype=torch.float64), masks, (rows, columns))
        torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("mode", MODES)
def test_an_over_complete_mask_without_a_size_may_be_wider(mode):
    masks = torch.randn(1, 7 * 9, 4, 5, dtype=torch.float64)
    value = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    wider = torch.nn.functional.pad(masks.view(7, 9, 4, 5), (0, 0, 0, 0, 2, 2, 1, 1), value=math.nan)
    out = FUNCTIONS[mode](value, masks)
    torch.testing.assert_close(FUNCTIONS[mode](value, wider.reshape(1, 9 * 13, 4, 5), (9, 13)), out)


@pytest.mark.parametrize("mode", MODES)
def test_huge_logits_stay_finite(mode):
    value = torch.randn(1, 4, 9, 12, requires_grad=True)
    for rows, columns in ((17, 23), (5, 5)):
        masks = (1e6 * torch.randn(1, rows * columns, 9, 12)).requires_grad_()
        out = FUNCTIONS[mode](value, masks, (rows, columns))
        expected, _ = reference.psa(value.double(), masks.double(), mode, rows, columns, False, True)
        assert close(out, expected)
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (value, masks)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_where_it_belongs(dtype):
    value, masks = torch.randn(2, 3, 5, 6).to(dtype), torch.randn(2, 9 * 11, 5, 6).to(dtype)
    masks[0, 4 * 11 + 5, 2, 3] = math.nan  # the weight of a position for itself
    out = segops.psa_collect(value, masks)
    assert out[0, :, 2, 3].isnan().all() and out.isnan().sum() == 3
    assert torch.equal(segops.psa_distribute(value, masks).isnan(), out.isnan())
    value[1, 1, 0, 0] = math.inf
    assert not segops.psa_collect(value, masks)[1, 1].isfinite().any()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((2, 3, 5, 6), None),
        ((1, 97, 9, 11), None),  # odd numbers of channels and positions, and of both more than a tile
        ((1, 4, 9, 11), "compact"),
        ((1, 5, 27, 15), (3, 5)),  # ranges of positions that begin and end at odd ones
        ((1, 5, 13, 31), (5, 61)),  # as many columns as there are, but few rows
        ((1, 2, 24, 16), (3, 3)),
        ((1, 1, 1, 1), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype, shape, mask, mode, softmax):
    n, _, height, width = shape
    compact = mask == "compact"
    size = None if compact else mask
    rows, columns = size or (2 * height - 1, 2 * width - 1)
    value = torch.randn(shape).to(dtype)
    masks = torch.randn(n, height * width if compact else rows * columns, height, width).to(dtype)
    assert_summed_in_float32(
        lambda *tensors: FUNCTIONS[mode](*tensors, size, softmax=softmax, compact=compact), value, masks
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [6, 7])
def test_not_a_number_in_rows_that_no_mask_reaches_multiplies_nothing(width, dtype):
    value, masks = torch.randn(1, 3, 60, width).to(dtype), torch.randn(1, 9, 60, width).to(dtype)
    value[..., 40:, :] = math.nan
    for function in FUNCTIONS.values():
        assert function(value, masks, 3, softmax=False)[..., :20, :].isfinite().all()


def test_attention_of_another_dtype_is_not_rounded():
    value, masks = torch.randn(1, 3, 5, 6).bfloat16(), torch.randn(1, 9 * 11, 5, 6)
    for function in FUNCTIONS.values():
        assert torch.equal(function(value, masks), function(value.float(), masks).bfloat16())


def test_any_layout_and_no_image():
    value, masks = torch.randn(2, 3, 5, 6), torch.randn(2, 15, 5, 6)
    last = torch.channels_last
    for function in FUNCTIONS.values():
        out = function(value.contiguous(memory_format=last), masks.contiguous(memory_format=last), (3, 5))
        assert out.is_contiguous() and torch.equal(out, function(value, masks, (3, 5)))
        assert function(value[:0], masks[:0], (3, 5)).shape == (0, 3, 5, 6)


def test_results_do_not_depend_on_the_number_of_threads():
    value, masks = torch.randn(1, 40, 17, 20, requires_grad=True), torch.randn(1, 33 * 39, 17, 20, requires_grad=True)

    def results():
        out = segops.psa_distribute(value, masks)
        return [out, *torch.autograd.grad(out, (value, masks), torch.ones_like(out))]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(results(), one, strict=True))
    finally:
        torch.set_num_threads(before)


X, A = torch.rand(2, 4, 5, 6), torch.rand(2, 15, 5, 6)


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((X[0], A), {}, ValueError, r"value: expected 4 dimensions \(N, C, H, W\), got shape \(4, 5, 6\)"),
        ((X.numpy(), A), {}, TypeError, "value: expected a tensor .* got ndarray"),
        ((X.long(), A), {}, TypeError, "value: expected float64, .* got torch.int64"),
        ((X.to_sparse(), A), {}, TypeError, "value: expected a dense tensor"),
        ((X[:, :0], A), {}, ValueError, r"value: expected at least one channel, row and column, got shape \(2, 0, 5"),
        ((X, A[0]), {}, ValueError, r"attention: expected 4 dimensions .* got shape \(15, 5, 6\)"),
        ((X, A.int()), {}, TypeError, "attention: expected float64, .* got torch.int32"),
        ((X, A.to("meta")), {}, ValueError, "attention: expected device cpu like value, got meta"),
        ((X, A[:1], 3), {}, ValueError, r"attention: expected shape \(2, M_h \* M_w, 5, 6\) .* got \(1, 15, 5, 6\)"),
        (
            (X, A[..., :5], 3),
            {},
            ValueError,
            r"attention: expected shape \(2, M_h \* M_w, 5, 6\) .* got \(2, 15, 5, 5\)",
        ),
        ((X, A), {}, ValueError, r"attention: expected 9 \* 11 = 99 channels for mask_size, got shape \(2, 15, 5, 6\)"),
        (
            (X, A, 3),
            {},
            ValueError,
            r"attention: expected 3 \* 3 = 9 channels for mask_size, got shape \(2, 15, 5, 6\)",
        ),
        ((X, A, (2, 5)), {}, ValueError, r"mask_size: expected odd numbers, got \(2, 5\)"),
        ((X, A, (-3, 5)), {}, ValueError, "mask_size: expected integers >= 0, got"),
        ((X, A, (3, 5, 1)), {}, ValueError, "mask_size: expected one integer or two, got 3"),
        ((X, A, 3.0), {}, TypeError, "mask_size: expected an integer, got float"),
        ((X, A), {"compact": True}, ValueError, r"attention: expected 5 \* 6 = 30 channels in compact form, got shape"),
        ((X, A, 3), {"compact": True}, ValueError, "mask_size: expected None with compact attention, got 3"),
    ],
)
def test_bad_arguments(function, args, options, error, message):
    with pytest.raises(error, match=message):
        function(*args, **options)
