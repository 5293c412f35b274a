"""segops.losses against the numbers of the libraries whose conventions the options name."""

from __future__ import annotations

import golden_crf
import pytest
import torch
from torch.nn import functional as F

from segops import losses

ARRAYS = golden_crf.load("losses")
CASES = ARRAYS.pop("params")
GOLDEN = {k: torch.from_numpy(v) for k, v in ARRAYS.items()}


def called(loss, logits, target, options):
    """The loss in float64, and its gradient; a string in the options names a golden array."""
    options = {k: GOLDEN[v] if v == "w" else v for k, v in options.items()}
    x = GOLDEN[logits].double().requires_grad_()
    out = getattr(losses, loss)(x, GOLDEN[target], **options)
    return out.detach(), torch.autograd.grad(out, x)[0]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{i:02d} {CASES[i][0]} {CASES[i][1]}")
def test_a_library_s_convention_gives_its_numbers(case):
    library, loss, logits, target, options = CASES[case]
    options = {**losses.convention(library, loss), **options}
    value, gradient = called(loss, logits, target, options)
    expected = GOLDEN[f"{case:02d}_grad"].double()
    eps = torch.finfo(torch.float32).eps  # the peers computed in float32
    assert abs(value - GOLDEN[f"{case:02d}_loss"]) <= 8 * eps * max(abs(value), 1)
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weight", [None, "w"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_torch_s(label_smoothing, class_weight, reduction):
    x, target, weight = GOLDEN["x"].double(), GOLDEN["yi"], class_weight and GOLDEN["w"].double()
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    expected = F.cross_entropy(x, target.long(), weight, ignore_index=255, **options)
    torch.testing.assert_close(losses.cross_entropy(x, target, class_weight=weight, **options), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy_is_torch_s(reduction):
    x, target, weight = GOLDEN["x"].double(), GOLDEN["ym"], GOLDEN["w"].double()
    out = losses.binary_cross_entropy(x, target, pos_weight=weight, class_weight=weight, reduction=reduction)
    factor = weight.view(-1, 1, 1)
    expected = F.binary_cross_entropy_with_logits(
        x, target.double(), factor, pos_weight=factor, reduction=reduction
    )  # fmt: skip
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("library", "loss"), [("keras", "dice_loss"), ("torch", "dice_loss"), ("smp", "nothing")])
def test_a_convention_that_nobody_has(library, loss):
    with pytest.raises(ValueError, match="expected one of"):
        losses.convention(library, loss)
