"""bfloat16 and float16 in the Triton kernels of the attention family, under the interpreter."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.utils._pytree as pytree
from halves import assert_summed_in_float32
from torch.utils._python_dispatch import TorchDispatchMode

import segops

pytest.importorskip("triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (segops.nonlocal_attention, [(1, 8, 42), (1, 8, 30), (1, 5, 30)]),
        (segops.criss_cross_attention, [(1, 8, 6, 7), (1, 8, 6, 7), (1, 5, 6, 7)]),
        (
            partial(segops.interlaced_attention, relation="local", down_factor=3),
            [(1, 8, 6, 7), (1, 8, 6, 7), (1, 5, 6, 7)],
        ),
        (
            partial(segops.interlaced_attention, relation="global", down_factor=(2, 9)),
            [(1, 8, 9, 19), (1, 8, 9, 19), (1, 37, 9, 19)],
        ),
        (lambda *x: segops.em_attention(*x, unrolled=True)[0], [(1, 8, 600), (1, 8, 4)]),
        (lambda *x: segops.em_attention(*x, unrolled=True)[0], [(2, 300, 40), (2, 300, 9)]),
        (segops.encoding, [(1, 8, 600), (4, 8), (4,)]),
        (partial(segops.psa_collect, mask_size=5), [(1, 8, 6, 7), (1, 25, 6, 7)]),
        (partial(segops.psa_distribute, mask_size=(7, 3)), [(2, 70, 9, 11), (2, 21, 9, 11)]),
        (partial(segops.psa_distribute, softmax=False), [(1, 5, 9, 11), (1, 17 * 21, 9, 11)]),
        (partial(segops.psa_collect, compact=True), [(1, 5, 9, 11), (1, 99, 9, 11)]),
    ],
    ids=[
        "nonlocal",
        "criss_cross",
        "interlaced",
        "interlaced_global",
        "em",
        "em_of_many_channels",
        "encoding",
        "psa",
        "psa_distribute",
        "psa_without_softmax",
        "psa_compact",
    ],
)
def test_halves_are_summed_in_float32(function, shapes, dtype):
    tensors = [0.5 * torch.randn(shape) for shape in shapes]
    assert_summed_in_float32(function, *(x.to(dtype) for x in tensors), backend="triton")


class Float32(TorchDispatchMode):
    """The size of the largest float32 tensor that anything makes inside."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = (x.numel() for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor) and x.dtype == torch.float32)
        self.largest = max(self.largest, *sizes, 0)
        return out


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda *x: segops.em_attention(*x, unrolled=True)[0], [(1, 40, 600), (1, 40, 2)]),
        (segops.encoding, [(1, 40, 600), (2, 40), (2,)]),
    ],
    ids=["em", "encoding"],
)
def test_maps_of_bfloat16_are_not_widened(function, shapes):
    tensors = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    with Float32() as made, segops.backend("triton"):
        function(*tensors).sum().backward()
    assert 0 < made.largest < tensors[0].numel() / 4
