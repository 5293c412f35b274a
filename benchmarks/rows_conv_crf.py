"""Rows of the convolutional CRF, and the published formulation: windows unfolded in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from bench_types import Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from rows_crf import scene
from torch import Tensor

import segops

SIZE, ITERATIONS = 11, 5


def photo(blur: int, gradients: bool = False, height: int = 375, width: int = 500) -> Inputs:
    """A photograph of VOC's size with 21 labels, and how far messages pass."""
    inputs = scene(("coffee",), height, width, 21, ITERATIONS)
    return {"logits": inputs["logits"].requires_grad_(gradients), "image": inputs["image"], "blur": blur}


def segops_crf(logits: Tensor, image: Tensor, blur: int) -> Tensor:
    return segops.conv_crf(logits, image, filter_size=SIZE, blur=blur, iterations=ITERATIONS)


def windows(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, window, H, W)."""
    n, channels, height, width = maps.shape
    return F.unfold(maps, SIZE, padding=SIZE // 2).view(n, channels, SIZE * SIZE, height, width)


def unfolded_crf(logits: Tensor, image: Tensor, blur: int) -> Tensor:
    """The published code's way: the weights of all windows in memory, the marginals unfolded, a product and a sum."""
    height, width = logits.shape[2:]
    top, left = (-(-(-size % blur) // 2) for size in (height, width))
    colors = image.to(logits.dtype)
    place = torch.arange(-(SIZE // 2), SIZE // 2 + 1, dtype=logits.dtype, device=logits.device).mul(blur / 3).square()
    window = torch.exp(-0.5 * (place + place[:, None])).view(1, 1, -1, 1, 1)

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, blur, padding=(top, left), count_include_pad=False) if blur > 1 else x

    colors = pool(colors) / 13
    difference = windows(colors) - colors[:, :, None]
    inside = windows(torch.ones_like(colors[:, :1]))
    weights = inside * (0.6 * window + 2 * torch.exp(-0.5 * difference.square().sum(1, keepdim=True)))
    unary = torch.log_softmax(logits, 1)
    state = unary
    for _ in range(ITERATIONS):
        message = (weights * windows(pool(torch.softmax(state, 1)))).sum(2)
        if blur > 1:
            message = F.interpolate(message, scale_factor=blur, mode="bilinear", align_corners=False)
            message = message[:, :, top : top + height, left : left + width]
        state = 0.8 * unary + message
    return torch.softmax(state, 1)


def provider(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        logits, image, blur = inputs["logits"], inputs["image"], inputs["blur"]
        if logits.requires_grad:
            return lambda: with_gradients(lambda x: function(x, image, blur), logits, grad=logits.detach())
        return lambda: [function(logits, image, blur)]

    return prepare


def oracle(inputs: Inputs) -> list[Tensor]:
    with segops.backend("reference"):
        return provider(segops_crf)(doubled(inputs))()


WORKLOADS = (
    Workload("conv_crf", "500x375_21_labels_blur_4", lambda: photo(4), tensors_once, oracle, size=375 * 500),
    Workload("conv_crf", "500x375_21_labels_blur_1", lambda: photo(1), tensors_once, oracle, threads=(2,), late=True),
    Workload(
        "conv_crf",
        "500x375_21_labels_blur_4_forward_backward",
        lambda: photo(4, True),
        tensors_once,
        oracle,
        threads=(2,),
    ),
)
SWEEPS = tuple(
    Workload(
        "conv_crf",
        f"{width}x{height}_21_labels_blur_4",
        partial(photo, 4, False, height, width),
        tensors_once,
        oracle,
        size=height * width,
    )
    for height, width in ((94, 125), (188, 250))
)

PROVIDERS = (
    Provider("segops", "conv_crf", provider(segops_crf)),
    Provider("unfolded", "conv_crf", provider(unfolded_crf)),
)
