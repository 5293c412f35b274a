"""Any model's convolutions with holes on segops.atrous_conv2d."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from .atrous_conv2d import AtrousConv2d


@dataclass(frozen=True)
class Accelerated:
    """What :func:`segops.accelerate` did: names of layers with what they are, and why it left the others."""

    swapped: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        total = len(self.swapped) + len(self.kept)
        lines = [f"{len(self.swapped)} of {total} convolutions are segops.nn.AtrousConv2d now"]
        lines += [f"  {name}: {what}" for name, what in self.swapped.items()]
        lines += [f"  not {count}: {reason}" for reason, count in Counter(self.kept.values()).items()]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Accelerated:
    """Put the convolutions with holes of any model on :func:`segops.atrous_conv2d`, in place.

    Each ``torch.nn.Conv2d`` with a dilation above 1 becomes a :class:`segops.nn.AtrousConv2d`: the same object, with
    its parameters, hooks and place in the model, so that optimizers, ``state_dict`` and later training are as before;
    only its ``forward`` is another. Results are those of before up to rounding. Sub-classes of ``Conv2d`` may compute
    something else, and stay.

    Args:
        model: any module, of torchvision, timm, mmsegmentation, segmentation_models_pytorch or one's own.

    Returns:
        What was swapped and what was not, with reasons; its text is fit to print.

    Raises:
        TypeError: for what is no module.

    Example:
        >>> import torch, segops
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, padding=4, dilation=4))
        >>> print(segops.accelerate(model))
        1 of 2 convolutions are segops.nn.AtrousConv2d now
          1: 8 -> 8, 3 x 3, dilation 4
          not 1: dilation 1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    swapped, kept = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        reason = _obstacle(module)
        if reason is None:
            module.__class__ = AtrousConv2d  # which has no state of its own
            swapped[name] = _description(module)
        else:
            kept[name] = reason
    return Accelerated(swapped, kept)


def _obstacle(conv: nn.Conv2d) -> str | None:
    """Why a convolution stays as it is."""
    if type(conv) is AtrousConv2d:
        return "a segops.nn.AtrousConv2d already"
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} may compute something else than Conv2d"
    return "dilation 1" if max(conv.dilation) == 1 else None


def _description(conv: nn.Conv2d) -> str:
    kernel, rate = " x ".join(map(str, conv.kernel_size)), conv.dilation
    text = f"{conv.in_channels} -> {conv.out_channels}, {kernel}, dilation {rate[0] if rate[0] == rate[1] else rate}"
    return text if conv.groups == 1 else f"{text}, {conv.groups} groups"
