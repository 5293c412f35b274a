"""Layers of models written out in plain torch, for tests that hold heads against their papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomise(model: nn.Module) -> nn.Module:
    """Parameters and statistics away from their first values, zeros and ones of which would hide faults."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor)
                tensor += 0.1 * noise
    return model


def convolved(x: Tensor, conv: nn.Conv2d, rate: int = 1) -> Tensor:
    """With the weights of a layer, its bias if it has one, and nothing else of it; the size stays."""
    groups = x.shape[1] // conv.weight.shape[1]
    padding = rate * (conv.weight.shape[-1] // 2)
    return F.conv2d(x, conv.weight, conv.bias, padding=padding, dilation=rate, groups=groups)


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """By the running statistics."""
    mean, var, weight, bias = (t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (var + norm.eps).sqrt() * weight + bias


def layer(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, rate: int = 1) -> Tensor:
    """Convolution, normalisation, ReLU."""
    return normalised(convolved(x, conv, rate), norm).relu()


def error(out: Tensor, expected: Tensor) -> float:
    """Of the norm of what was expected."""
    assert out.shape == expected.shape
    return float((out - expected).detach().norm() / expected.detach().norm())
