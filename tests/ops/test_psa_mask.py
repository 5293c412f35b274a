"""psa_mask: golden values, the index rule by loops, layouts and dtypes, bad input."""

from __future__ import annotations

import golden_crf
import pytest
import torch

import segops

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("psa").items()}
CASES = ("oc", "half", "small", "mixed", "over", "row", "one")
MODES = ("collect", "distribute")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_golden_mask(case, mode):
    masks = GOLDEN[f"{case}_mask"].requires_grad_()
    out = segops.psa_mask(masks, mode, tuple(GOLDEN[f"{case}_mask_hw"].tolist()))
    (grad,) = torch.autograd.grad(out, masks, GOLDEN[f"{case}_gbuf"])
    assert torch.equal(out, GOLDEN[f"{case}_{mode}_buf"])
    assert torch.equal(grad, GOLDEN[f"{case}_{mode}_dmask"])


@pytest.mark.parametrize("mode", MODES)
def test_loops_over_every_pair(mode):
    """The index rule in the words of the paper: a position's mask is centred on it."""
    height, width, rows, columns = 4, 5, 3, 5
    masks = torch.randn(1, rows * columns, height, width)
    expected = torch.zeros(1, height * width, height, width)
    for y in range(height):
        for x in range(width):
            for i in range(rows):
                for j in range(columns):
                    other_y, other_x = y + i - rows // 2, x + j - columns // 2
                    if 0 <= other_y < height and 0 <= other_x < width:
                        entry = masks[0, i * columns + j, y, x]
                        if mode == "collect":
                            expected[0, other_y * width + other_x, y, x] = entry
                        else:
                            expected[0, y * width + x, other_y, other_x] = entry
    assert torch.equal(segops.psa_mask(masks, mode, (rows, columns)), expected)


@pytest.mark.parametrize("mode", MODES)
def test_any_layout_dtype_and_no_image(mode):
    masks = torch.randn(2, 15, 5, 6)
    out = segops.psa_mask(masks, mode, (3, 5))
    assert torch.equal(segops.psa_mask(masks.contiguous(memory_format=torch.channels_last), mode, (3, 5)), out)
    assert torch.equal(segops.psa_mask(masks.bfloat16(), mode, (3, 5)), out.bfloat16())
    assert segops.psa_mask(masks[:0], mode, (3, 5)).shape == (0, 30, 5, 6)


A = torch.rand(2, 15, 5, 6)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((A, "both", (3, 5)), ValueError, "mode: expected one of 'collect', 'distribute', got 'both'"),
        (
            (A, "collect", 3),
            ValueError,
            r"input: expected 3 \* 3 = 9 channels for mask_size, got shape \(2, 15, 5, 6\)",
        ),
        ((A.bool(), "collect", 3), TypeError, "input: expected float64, .* got torch.bool"),
        ((A[0], "collect", 3), ValueError, r"input: expected 4 dimensions \(N, C, H, W\), got shape \(15, 5, 6\)"),
    ],
)
def test_bad_arguments_of_the_mask(args, error, message):
    with pytest.raises(error, match=message):
        segops.psa_mask(*args)
