"""Rows of cross entropy, Dice and focal loss together, as a training step takes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from bench_types import Inputs, Provider, Workload, doubled, tensors_once, with_gradients
from torch import Tensor
from torch.nn import functional as F

import segops


def batch(n: int, channels: int, height: int, width: int) -> Inputs:
    """Logits, and labels in squares of 16 pixels, about one in 16 of them ignored."""
    g = torch.Generator().manual_seed(0)
    squares = torch.randint(0, channels, (n, height // 16, width // 16), generator=g)
    squares.masked_fill_(torch.rand(squares.shape, generator=g) < 1 / 16, 255)
    target = squares.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return {"logits": torch.randn(n, channels, height, width, generator=g).requires_grad_(), "target": target}


def eager(logits: Tensor, target: Tensor) -> Tensor:
    """The three losses as they are usually written, one softmax for all of them."""
    valid = target != 255
    log_p = logits.log_softmax(1)
    entropy = F.nll_loss(log_p, target, ignore_index=255, reduction="none")
    own = F.one_hot(target.where(valid, 0), logits.shape[1]).movedim(-1, 1) * valid[:, None]
    p = log_p.exp() * valid[:, None]
    dice = (2 * (p * own).sum((0, 2, 3)) + 1) / (p.sum((0, 2, 3)) + own.sum((0, 2, 3)) + 1)
    focal = ((1 - (-entropy).exp()) ** 2 * entropy).sum()
    return (entropy.sum() + focal) / valid.sum() + (1 - dice).mean()


def monai(inputs: Inputs) -> Callable[[], list[Tensor]]:
    """monai's Dice and focal loss share one-hot labels, all 0 where ignored: given the labels themselves, each
    would make its own. The softmax comes before the mask, which releases up to 1.5 had the wrong way round. Its
    DiceCELoss can't ignore a label, so that cross entropy is torch's."""
    losses, one_hot = importlib.import_module("monai.losses"), importlib.import_module("monai.networks.utils").one_hot
    soft_dice = losses.MaskedDiceLoss(batch=True, smooth_nr=1, smooth_dr=1)
    focal = losses.FocalLoss(use_softmax=True, gamma=2.0, reduction="none")

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        valid = (target != 255)[:, None]
        own = one_hot(target[:, None].where(valid, 0), logits.shape[1]) * valid
        entropy = F.cross_entropy(logits, target, ignore_index=255)
        return entropy + soft_dice(logits.softmax(1), own, valid) + focal(logits, own).sum() / valid.sum()

    return provider(loss)(inputs)


def provider(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    return lambda inputs: lambda: with_gradients(lambda x: loss(x, inputs["target"]), inputs["logits"])


WORKLOADS = (
    Workload(
        "cross_entropy_dice_focal",
        "8x21x512x512_forward_backward",
        lambda: batch(8, 21, 512, 512),
        tensors_once,
        lambda inputs: provider(eager)(doubled(inputs))(),
    ),
)
PROVIDERS = (
    Provider("segops", "cross_entropy_dice_focal", provider(segops.cross_entropy_dice_focal)),
    Provider("eager", "cross_entropy_dice_focal", provider(eager)),
    Provider("compiled", "cross_entropy_dice_focal", lambda inputs: provider(torch.compile(eager))(inputs)),
    Provider("monai", "cross_entropy_dice_focal", monai, needs="monai"),
)
