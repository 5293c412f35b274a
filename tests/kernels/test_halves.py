"""bfloat16 and float16 in the Triton kernels of the attention family, under the interpreter."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from halves import assert_summed_in_float32

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
        (lambda *x: segops.em_attention(*x, unrolled=True)[0], [(1, 8, 42), (1, 8, 4)]),
        (segops.encoding, [(1, 8, 42), (4, 8), (4,)]),
        (partial(segops.psa_collect, mask_size=5), [(1, 8, 6, 7), (1, 25, 6, 7)]),
    ],
    ids=["nonlocal", "criss_cross", "interlaced", "em", "encoding", "psa"],
)
def test_halves_are_summed_in_float32(function, shapes, dtype):
    tensors = [0.5 * torch.randn(shape) for shape in shapes]
    assert_summed_in_float32(function, *(x.to(dtype) for x in tensors), backend="triton")
