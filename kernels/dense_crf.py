"""The features of the dense CRF of an image on a GPU: position and colour, each over its standard deviation.

One pass: an image of any real dtype and any layout is read once, (N, 2 + C, H W) is written once. A program makes all
features of a block of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv
from torch import Tensor

from segops._checks import filled


@triton.jit
def quotient(a, b):
    """Rounded to nearest: on a grid, points lie on faces of the lattice's cells; the last bit says on which side."""
    if b.dtype == tl.float32:
        out = tl.div_rn(a, b)
    else:
        out = a / b
    return out


@triton.jit
def features_kernel(
    image, sigma, out, pixels, width, blocks, channels, stride_n, stride_c, stride_h, stride_w, BLOCK: tl.constexpr
):
    """sigma (2 + C,); out (N, 2 + C, H W)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    x, y = p % width, p // width
    real = out.dtype.element_ty
    out += item * (2 + channels) * pixels + p
    tl.store(out, quotient(x.to(real), tl.load(sigma)), mask=inside)
    out += pixels
    tl.store(out, quotient(y.to(real), tl.load(sigma + 1)), mask=inside)
    image += item * stride_n + y * stride_h + x * stride_w
    for c in range(channels):
        out += pixels
        value = tl.load(image, mask=inside, other=0).to(real)
        tl.store(out, quotient(value, tl.load(sigma + 2 + c)), mask=inside)
        image += stride_c


def dense_crf_features(image: Tensor, sigma_xy: Sequence[float], sigma_color: Sequence[float]) -> Tensor:
    """image (N, C, H, W) to (N, 2 + C, H W), float64 for a float64 image, else float32."""
    n, channels, height, width = image.shape
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    out = image.new_empty((n, 2 + channels, height * width), dtype=dtype)
    if out.numel() == 0:
        return out
    sigma = filled([*sigma_xy, *sigma_color], dtype, image.device)
    block = block_of(dtype)
    blocks = cdiv(height * width, block)
    features_kernel[(n * blocks,)](
        image, sigma, out, height * width, width, blocks, channels, *image.stride(), BLOCK=block
    )
    return out


def block_of(dtype: torch.dtype) -> int:
    """Pixels of a program, as many as the registers hold: a division in float64 takes many."""
    return 256 if dtype == torch.float64 else 512


AOT = [
    (features_kernel, {"image": image, "sigma": out, "out": out}, [{"BLOCK": block_of(dtype)}])
    for image, out, dtype in (
        ("*u8", "*fp32", torch.float32),
        ("*fp32", "*fp32", torch.float32),
        ("*fp64", "*fp64", torch.float64),
    )
]
