"""Multiply-adds of a model: torch's counter, with a formula for each operator of segops that has many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from .. import ops

Shape = Sequence[int]


def _atrous_conv2d(x: list[int], weight: list[int], *rest: Any, out_shape: list[int], **_: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


def _aspp(x: list[int], weights: list[list[int]], *rest: Any, **_: Any) -> int:
    return sum(conv_flop_count(x, w, [x[0], w[0], *x[2:]]) for w in weights)


def _nonlocal(query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    return 2 * query[0] * math.prod(query[2:]) * math.prod(key[2:]) * (query[1] + value[1])


def _criss_cross(query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    n, d, h, w = query
    return 2 * n * h * w * (h + w - 1) * (d + value[1])


def _interlaced(
    query: Shape, key: Shape, value: Shape, factor: Sequence[int], relation: str, *rest: Any, **_: Any
) -> int:
    n, d, h, w = query
    rows, columns = (math.ceil(side / f) for side, f in zip((h, w), factor, strict=True))
    block, blocks = factor[0] * factor[1], rows * columns
    return 2 * n * block * blocks * (d + value[1]) * (block if relation == "local" else blocks)


def _em_attention(x: Shape, bases: Shape, iterations: int, *rest: Any, **_: Any) -> int:
    once = 2 * x[0] * x[1] * math.prod(x[2:]) * bases[2]
    return (2 * iterations + 1) * once  # both steps of each iteration, and the reconstruction


def _encoding(x: Shape, codewords: Shape, *rest: Any, **_: Any) -> int:
    return 2 * 2 * x[0] * math.prod(x[2:]) * math.prod(codewords)


def _psa(value: Shape, attention: Shape, *rest: Any, **_: Any) -> int:
    return 2 * value[0] * value[1] * math.prod(value[2:]) ** 2


def _conv_crf(values: Shape, colors: Shape, spatial: Shape, *rest: Any, **_: Any) -> int:
    return 2 * math.prod(values) * math.prod(spatial[-2:])


FORMULAS: dict[str, Callable[..., int]] = {
    "aspp": _aspp,
    "atrous_conv2d": _atrous_conv2d,
    "conv_crf_message": _conv_crf,
    "criss_cross_attention": _criss_cross,
    "em_attention": _em_attention,
    "encoding": _encoding,
    "interlaced_attention": _interlaced,
    "nonlocal_attention": _nonlocal,
    "psa": _psa,
}


def multiply_adds(model: nn.Module, size: tuple[int, int] = (512, 512)) -> int:
    """Multiply-adds of a forward pass in evaluation mode, of convolutions, products of matrices and operators of segops
    that are made of them; additions, interpolation, pooling and softmax are not counted.

    Args:
        model: on the device ``meta``, where nothing is computed.
        size: rows and columns of one image. Default 512 x 512.

    Example:
        >>> import torch, segops
        >>> from segops.models.cost import multiply_adds
        >>> with torch.device("meta"):
        ...     model = segops.models.create_model("fcn", encoder="resnet18", output_stride=32, aux=False)
        >>> round(multiply_adds(model) / 1e9, 1)
        9.6
    """
    assert ops  # whose import has defined torch.ops.segops
    mapping = {getattr(torch.ops.segops, name): formula for name, formula in FORMULAS.items()}
    training = model.training
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        model.eval()(torch.empty(1, getattr(model, "in_channels", 3), *size, device="meta"))
    model.train(training)
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """Numbers that a model learns or keeps as parameters."""
    return sum(p.numel() for p in model.parameters())
