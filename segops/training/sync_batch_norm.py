"""Batch normalisation over all processes, on the CPU too, where torch's has none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose mean and variance in training are those of the batches of all processes."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        count = _Sum.apply(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = _Sum.apply(x.sum((0, 2, 3))) / count
        centred = x - mean.view(-1, 1, 1)
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).to(self.running_var), self.momentum)
        factor = self.weight * (variance + self.eps).rsqrt()
        return centred * factor.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class _Sum(torch.autograd.Function):
    """The sum over all processes; gradients are summed over them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


class ProcessSyncBatchNorm(LayerSync):
    """Lightning's plug for it: torch's own on a GPU, the one above elsewhere."""

    def apply(self, model: Any) -> Any:
        """Make all batch normalisations of a model synchronous."""
        if any(p.is_cuda for p in model.parameters()):
            return TorchSyncBatchNorm().apply(model)
        for module in model.modules():
            if type(module) is nn.BatchNorm2d and module.affine and module.momentum is not None:
                module.__class__ = SyncBatchNorm2d  # the same state, another forward
        return model

    def revert(self, model: Any) -> Any:
        """And back."""
        if any(p.is_cuda for p in model.parameters()):
            return TorchSyncBatchNorm().revert(model)
        for module in model.modules():
            if type(module) is SyncBatchNorm2d:
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return model
