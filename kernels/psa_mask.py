"""The masks of point-wise spatial attention as a matrix, and back, on a GPU: a program for each tile of the matrix."""

from __future__ import annotations

import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from segops.kernels.psa import entries_of
from torch import Tensor

SIDE = 32  # of a tile, of which either rows or diagonals are in one piece


@triton.jit
def mask_kernel(
    masks, matrix, positions, width, rows, columns, blocks,
    COLLECT: tl.constexpr, BACK: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """masks (M_h M_w, P) to the matrix (P, P), or BACK."""
    tile = tl.program_id(0) // blocks
    t = (tl.program_id(0) % blocks * SIDE + tl.arange(0, SIDE))[None, :]
    s = (tile % blocks * SIDE + tl.arange(0, SIDE))[:, None]
    item = (tile // blocks).to(tl.int64)
    offsets, exist = entries_of(s, t, positions, width, rows, columns, COLLECT, False)
    masks += item * rows * columns * positions + offsets
    matrix += (item * positions + s) * positions + t
    if BACK:
        tl.store(masks, tl.load(matrix, mask=exist, other=0.0), mask=exist)
    else:
        m = tl.load(masks, mask=exist, other=0.0)
        tl.store(matrix, m, mask=(s < positions) & (t < positions))


def launch(masks: Tensor, matrix: Tensor, mode: str, rows: int, columns: int, back: bool) -> None:
    """Over every tile of every image."""
    n, _, height, width = masks.shape
    blocks = cdiv(height * width, SIDE)
    if n:
        mask_kernel[(n * blocks * blocks,)](
            masks, matrix, height * width, width, rows, columns, blocks,
            COLLECT=mode == "collect", BACK=back, SIDE=SIDE, num_warps=4,
        )  # fmt: skip


def psa_mask(attention: Tensor, mode: str, mask_height: int, mask_width: int) -> Tensor:
    """(N, M_h M_w, H, W) to (N, H W, H, W)."""
    n, _, height, width = attention.shape
    out = attention.new_empty(n, height * width, height, width)
    launch(attention.contiguous(), out, mode, mask_height, mask_width, False)
    return out


def psa_mask_backward(grad: Tensor, mode: str, mask_height: int, mask_width: int) -> Tensor:
    """(N, H W, H, W) to (N, M_h M_w, H, W), zeros in what belongs to no position."""
    n, _, height, width = grad.shape
    out = grad.new_zeros(n, mask_height * mask_width, height, width)
    launch(out, grad.contiguous(), mode, mask_height, mask_width, True)
    return out


AOT = [
    (
        mask_kernel,
        {"masks": "*T", "matrix": "*T"},
        [
            {"COLLECT": collect, "BACK": back, "SIDE": SIDE, "num_warps": 4}
            for collect in (True, False)
            for back in (True, False)
        ],
    )
]
