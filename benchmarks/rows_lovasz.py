"""Rows of the Lovasz losses, of logits before training and after it, when far more of the errors take part."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from bench_types import Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor
from torch.nn import functional as F

import segops


def untrained(averaged: str, *shape: int) -> Inputs:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=g).requires_grad_()
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=g)
    return {"input": logits, "target": target, "classes": averaged}


def trained(averaged: str, *shape: int) -> Inputs:
    """Regions, and logits that are right at most of their pixels."""
    g = torch.Generator().manual_seed(0)
    regions = F.interpolate(torch.randn(*shape[:2], 8, 8, generator=g), size=shape[2:], mode="bicubic")
    logits = 8 * regions + 1.5 * torch.randn(shape, generator=g)
    return {"input": logits.contiguous().requires_grad_(), "target": regions.argmax(1), "classes": averaged}


def few_classes(present: int, *shape: int) -> Inputs:
    """As one image of a data set of many classes has them."""
    inputs = trained("present", *shape)
    return {**inputs, "target": inputs["target"] % present}


def binary(n: int, height: int, width: int) -> Inputs:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(n, height, width, generator=g).requires_grad_()
    return {"input": logits, "target": (torch.rand(n, height, width, generator=g) < 0.3).long()}


def segops_softmax(inputs: Inputs) -> Callable[[], list[Tensor]]:
    return lambda: with_gradients(
        lambda x: segops.lovasz_softmax(x, inputs["target"], classes=inputs["classes"]), inputs["input"]
    )


def segops_hinge(inputs: Inputs) -> Callable[[], list[Tensor]]:
    return lambda: with_gradients(lambda x: segops.lovasz_hinge(x, inputs["target"]), inputs["input"])


def segops_grad(inputs: Inputs) -> Callable[[], list[Tensor]]:
    return lambda: [segops.lovasz_grad(inputs["foreground"])]


def published_grad(foreground: Tensor) -> Tensor:
    """Algorithm 1 of the paper as it is published: neighbouring Jaccard values subtracted."""
    total = foreground.sum()
    jaccard = 1 - (total - foreground.cumsum(0)) / (total + (1 - foreground).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def published_softmax(inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Class after class, as the published code and its copies do."""
    target, everything = inputs["target"].flatten(), inputs["classes"] == "all"

    def loss(logits: Tensor) -> Tensor:
        probabilities, losses = logits.softmax(1).movedim(1, -1).flatten(0, -2), []
        for c in range(logits.shape[1]):
            foreground = (target == c).to(logits.dtype)
            if everything or foreground.sum() > 0:
                errors, order = (foreground - probabilities[:, c]).abs().sort(descending=True)
                losses.append(torch.dot(errors, published_grad(foreground[order])))
        return torch.stack(losses).mean()

    return lambda: with_gradients(loss, inputs["input"])


def published_hinge(inputs: Inputs) -> Callable[[], list[Tensor]]:
    def image(logits: Tensor, target: Tensor) -> Tensor:
        foreground = target.flatten().to(logits.dtype)
        errors, order = (1 - logits.flatten() * (2 * foreground - 1)).sort(descending=True)
        return torch.dot(errors.relu(), published_grad(foreground[order]))

    def loss(logits: Tensor) -> Tensor:
        return torch.stack([image(x, t) for x, t in zip(logits, inputs["target"], strict=True)]).mean()

    return lambda: with_gradients(loss, inputs["input"])


def smp_softmax(inputs: Inputs) -> Callable[[], list[Tensor]]:
    """segmentation-models-pytorch's, which averages over the classes that are present, whatever is asked for."""
    loss = importlib.import_module("segmentation_models_pytorch.losses").LovaszLoss("multiclass")
    return lambda: with_gradients(lambda x: loss(x, inputs["target"]), inputs["input"])


def smp_hinge(inputs: Inputs) -> Callable[[], list[Tensor]]:
    loss = importlib.import_module("segmentation_models_pytorch.losses").LovaszLoss("binary", per_image=True)
    return lambda: with_gradients(lambda x: loss(x, inputs["target"]), inputs["input"])


def kornia_softmax(inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Its own quantity: a loss for each image, averaged over all classes, whatever is asked for."""
    loss = importlib.import_module("kornia.losses").lovasz_softmax_loss
    return lambda: with_gradients(lambda x: loss(x, inputs["target"]), inputs["input"])


def kornia_hinge(inputs: Inputs) -> Callable[[], list[Tensor]]:
    loss = importlib.import_module("kornia.losses").lovasz_hinge_loss
    return lambda: with_gradients(lambda x: loss(x[:, None], inputs["target"]), inputs["input"])


def sorted_rows() -> Inputs:
    return {"foreground": (torch.rand(21, 1 << 20, generator=torch.Generator().manual_seed(0)) < 0.05).float()}


def by_reference(prepare: Callable[[Inputs], Callable[[], list[Tensor]]]) -> Callable[[Inputs], list[Tensor]]:
    """The answer of plain PyTorch in float64."""

    def oracle(inputs: Inputs) -> list[Tensor]:
        with segops.backend("reference"):
            return prepare(doubled(inputs))()

    return oracle


def softmax_row(name: str, make: Callable[[], Inputs], late: bool = False) -> Workload:
    return Workload("lovasz_softmax", name, make, tensors_once, by_reference(segops_softmax), late=late)


WORKLOADS = (
    softmax_row("untrained_4x21x512x512_forward_backward", lambda: untrained("present", 4, 21, 512, 512)),
    softmax_row("trained_4x21x512x512_forward_backward", lambda: trained("present", 4, 21, 512, 512)),
    softmax_row("untrained_2x150x256x256_all_forward_backward", lambda: untrained("all", 2, 150, 256, 256)),
    softmax_row("untrained_1x21x512x512_all_forward_backward", lambda: untrained("all", 1, 21, 512, 512), late=True),
    softmax_row("trained_2x150x256x256_all_forward_backward", lambda: trained("all", 2, 150, 256, 256), late=True),
    softmax_row(
        "10_of_150_classes_2x150x256x256_forward_backward", lambda: few_classes(10, 2, 150, 256, 256), late=True
    ),
    Workload(
        "lovasz_hinge",
        "8x512x512_forward_backward",
        lambda: binary(8, 512, 512),
        tensors_once,
        by_reference(segops_hinge),
    ),
    Workload(
        "lovasz_grad",
        "21x1048576",
        sorted_rows,
        tensors_once,
        by_reference(segops_grad),
        late=True,
    ),
)

SWEEPS = tuple(
    Workload(
        "lovasz_softmax",
        f"untrained_1x21x{size}x{size}_forward_backward",
        partial(untrained, "present", 1, 21, size, size),
        tensors_once,
        by_reference(segops_softmax),
        size=size * size,
        late=size == 1024,
    )
    for size in (128, 256, 512, 1024)
)

# The published code's float32 gradients are off by some thousandths (see docs/ops/lovasz_grad.md).
CANCELLED = 0.05
PROVIDERS = (
    Provider("segops", "lovasz_softmax", segops_softmax),
    Provider("published", "lovasz_softmax", published_softmax, tolerance=CANCELLED),
    Provider("smp", "lovasz_softmax", smp_softmax, needs="segmentation_models_pytorch", tolerance=CANCELLED),
    Provider("kornia", "lovasz_softmax", kornia_softmax, needs="kornia", tolerance=CANCELLED),
    Provider("segops", "lovasz_hinge", segops_hinge),
    Provider("published", "lovasz_hinge", published_hinge, tolerance=CANCELLED),
    Provider("smp", "lovasz_hinge", smp_hinge, needs="segmentation_models_pytorch", tolerance=CANCELLED),
    Provider("kornia", "lovasz_hinge", kornia_hinge, needs="kornia", tolerance=CANCELLED),
    Provider("segops", "lovasz_grad", segops_grad),
    Provider(
        "published",
        "lovasz_grad",
        lambda inputs: lambda: [torch.stack([published_grad(row) for row in inputs["foreground"]])],
        tolerance=CANCELLED,
    ),
)
