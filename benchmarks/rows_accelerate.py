"""Rows of segops.accelerate: a whole model of torchvision, as it comes and with its convolutions with holes swapped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_types import Inputs, Provider, Workload
from torch import Tensor, nn

import segops


def inputs(size: int, backward: bool) -> Inputs:
    """One picture; torchvision's DeepLab v3 on ResNet-50 with random weights, normalising as in evaluation."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    torch.manual_seed(0)
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21).eval()
    return {"x": torch.randn(1, 3, size, size), "model": model.requires_grad_(backward), "backward": backward}


def bytes_moved(inputs: Inputs) -> int:
    """Weights, picture and logits once, and their gradients where they are wanted."""
    count = sum(p.numel() for p in inputs["model"].parameters()) + inputs["x"].numel() * (1 + 21 // 3)
    return 4 * count * (3 if inputs["backward"] else 1)


def step(model: nn.Module, x: Tensor, backward: bool) -> list[Tensor]:
    """Logits, and the gradient of the branch of the largest rate, which has crossed the head."""
    if not backward:
        with torch.no_grad():
            return [model(x)["out"]]
    out = model(x)["out"]
    weights = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.backward(out.float().square().mean(), inputs=weights)
    gradient = model.classifier[0].convs[3][0].weight.grad
    for p in weights:
        p.grad = None
    return [out.detach(), gradient]


def provider(layout: torch.memory_format, accelerated: bool) -> Callable[[Inputs], Callable[[], Any]]:
    def prepare(inputs: Inputs) -> Callable[[], Any]:
        model = copy.deepcopy(inputs["model"]).to(inputs["x"].device, memory_format=layout)
        if accelerated:
            segops.accelerate(model)
        x = inputs["x"].to(memory_format=layout)
        return lambda: step(model, x, inputs["backward"])

    return prepare


def oracle(inputs: Inputs) -> list[Tensor]:
    return step(
        copy.deepcopy(inputs["model"]).to(inputs["x"].device).double(), inputs["x"].double(), inputs["backward"]
    )


def workload(side: int, backward: bool, **options: Any) -> Workload:
    name = f"torchvision_deeplabv3_resnet50_{side}x{side}_{'forward_backward' if backward else 'forward'}"
    return Workload(
        "accelerate", name, partial(inputs, side, backward), bytes_moved, oracle, threads=(2,), weighed=False, **options
    )


WORKLOADS = (workload(257, True), workload(513, False, late=True))
SWEEPS = (workload(129, False, size=129 * 129),)

PROVIDERS = tuple(
    Provider(name, "accelerate", provider(layout, accelerated), needs="torchvision")
    for name, layout, accelerated in (
        ("segops", torch.contiguous_format, True),
        ("segops_channels_last", torch.channels_last, True),
        ("planes", torch.contiguous_format, False),
        ("channels_last", torch.channels_last, False),
    )
)
