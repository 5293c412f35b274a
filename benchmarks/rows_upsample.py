"""Rows of the two ends of a segmentation network, after logits of an eighth and of a quarter of the resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from bench_types import Inputs, Provider, Workload, tensors_once, with_gradients
from torch import Tensor
from torch.nn import functional as F

import segops


def regions(n: int, channels: int, height: int, width: int, scale: int, gradients: bool) -> Inputs:
    """Logits of regions, with noise, and labels that agree with them at most pixels, about one in 16 ignored."""
    g = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.randn(n, channels, 8, 8, generator=g), size=(height, width), mode="bicubic")
    logits = (4 * coarse + torch.randn(coarse.shape, generator=g)).requires_grad_(gradients)
    labels = coarse.argmax(1).masked_fill(torch.rand(n, height, width, generator=g) < 1 / 16, 255)
    return {"logits": logits, "target": labels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)}


def up(logits: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(logits, target.shape[1:], mode="bilinear")


def two_steps(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(up(logits, target), target, ignore_index=255)


def with_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    return lambda inputs: lambda: with_gradients(lambda x: loss(x, inputs["target"]), inputs["logits"])


def with_labels(argmax: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], Tensor]]:
    return lambda inputs: lambda: argmax(inputs["logits"], inputs["target"])


def strips(logits: Tensor, target: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """The logits at full size in float64, by matrices of weights and 64 rows at a time: all would take many GB."""

    def weights(cells: int, size: int) -> Tensor:
        return F.interpolate(torch.eye(cells, dtype=torch.float64)[None], size, mode="linear")[0].mT

    rows, columns = (weights(n, size) for n, size in zip(logits.shape[2:], target.shape[1:], strict=True))
    for top in range(0, len(rows), 64):
        strip = slice(top, top + 64)
        yield rows[strip] @ logits @ columns.mT, strip


def exact_loss(inputs: Inputs) -> list[Tensor]:
    logits, target = inputs["logits"].detach().double().requires_grad_(), inputs["target"]
    total = torch.zeros((), dtype=torch.float64)
    for full, strip in strips(logits, target):
        part = F.cross_entropy(full, target[:, strip], ignore_index=255, reduction="sum") / (target != 255).sum()
        part.backward()
        total += part.detach()
    assert logits.grad is not None
    return [total, logits.grad]


def exact_labels(inputs: Inputs) -> Tensor:
    return torch.cat([full.argmax(1) for full, _ in strips(inputs["logits"].double(), inputs["target"])], 1)


def bytes_of_labels(inputs: Inputs) -> int:
    return inputs["logits"].numel() * 4 + inputs["target"].numel()


SIZES = {"2x19x128x128_to_512x512": (2, 19, 128, 128, 4), "2x150x128x256_to_1024x2048": (2, 150, 128, 256, 8)}
WORKLOADS = (
    *(
        Workload(
            "upsample_cross_entropy",
            f"{name}_forward_backward",
            lambda sizes=sizes: regions(*sizes, gradients=True),  # type: ignore[misc]
            tensors_once,
            exact_loss,
            late="1024x2048" in name,  # whose peers take 12 seconds
        )
        for name, sizes in SIZES.items()
    ),
    *(
        Workload(
            "upsample_argmax",
            name,
            lambda sizes=sizes: regions(*sizes, gradients=False),  # type: ignore[misc]
            bytes_of_labels,
            exact_labels,
            late="1024x2048" in name,
        )
        for name, sizes in SIZES.items()
    ),
)
PROVIDERS = (
    Provider("segops", "upsample_cross_entropy", with_loss(segops.upsample_cross_entropy)),
    Provider("two_steps", "upsample_cross_entropy", with_loss(two_steps)),
    Provider(
        "compiled",
        "upsample_cross_entropy",
        lambda inputs: with_loss(torch.compile(two_steps))(inputs),
        slow_on=("1024x2048",),
    ),
    Provider("segops", "upsample_argmax", with_labels(lambda x, target: segops.upsample_argmax(x, target.shape[1:]))),
    Provider("two_steps", "upsample_argmax", with_labels(lambda x, target: up(x, target).argmax(1))),
)
