"""Trunks of timm by name, and ResNets with holes in the three ways of the literature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ... import _checks
from ...nn import accelerate

STRIDES = (8, 16, 32)
# Where a stage keeps its resolution, its first block
#   torchvision: has the dilation of the stage before (PyTorch-Encoding, openseg, EMANet, mmseg's
#                contract_dilation);
#   semseg:      has that of its other blocks (PSPNet, PSANet, OCNet, CCNet);
#   caffe:       the same, and every stage strides in its first 1 x 1 convolution (DeepLab v2, Caffe's PSPNet).
CONVENTIONS = ("torchvision", "semseg", "caffe")


def encoder(
    name: str,
    *,
    output_stride: int = 32,
    pretrained: bool = False,
    convention: str = "torchvision",
    multi_grid: Sequence[int] | None = None,
    ceil_mode: bool = False,
    **options: Any,
) -> Any:
    """A trunk of timm that gives its features at all strides, finest first.

    Args:
        name: of timm. ``resnet50`` has the 7 x 7 stem, ``resnet50s`` the three 3 x 3 convolutions (64, 64, 128) of
            PSPNet and its followers, ``resnet50c`` those of mmseg's V1c (32, 32, 64).
        output_stride: 8, 16 or 32; strides beyond it are dilations instead.
        pretrained: ImageNet weights, which timm fetches.
        convention: how a ResNet is dilated, one of ``CONVENTIONS``; other trunks are dilated by timm.
        multi_grid: factors of the dilations of a ResNet's last stage, one for each block.
        ceil_mode: whether the max-pooling of a ResNet rounds up, as Caffe's does.
        **options: of timm's builder of that name.

    Returns:
        A module from an image to a list of features; ``channels`` and ``reductions`` have a number for each.
        Convolutions with holes run on :func:`segops.atrous_conv2d`.

    Raises:
        ImportError: without timm.
        ValueError: for a name, stride or convention that there is not.
    """
    timm = _timm()
    _checks.choice("convention", convention, CONVENTIONS)
    if output_stride not in STRIDES:
        raise ValueError(f"output_stride: expected one of {STRIDES}, got {output_stride!r}")
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"encoder: expected a name of timm.list_models(), got {name!r}")
    resnet = timm.models.model_entrypoint(name).__module__ == "timm.models.resnet"
    how: dict[str, Any] = {} if resnet or output_stride == 32 else {"output_stride": output_stride}
    try:
        trunk = timm.create_model(name, pretrained=pretrained, features_only=True, **how, **options)
    except (TypeError, AssertionError, AttributeError) as error:  # of a trunk that knows no strides or no features
        raise ValueError(f"encoder: {name} can't be built with output_stride {output_stride}: {error}") from error
    if resnet:
        dilate_resnet(trunk, output_stride, convention, multi_grid)
        trunk.maxpool.ceil_mode = ceil_mode
    elif convention != "torchvision" or multi_grid is not None or ceil_mode:
        raise ValueError(f"encoder: convention, multi_grid and ceil_mode are of ResNets, got {name!r}")
    trunk.channels, trunk.reductions = trunk.feature_info.channels(), trunk.feature_info.reduction()
    accelerate(trunk)
    return trunk


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("encoders need timm and torchvision: pip install 'segops[models]'") from error
    return timm


def dilate_resnet(
    trunk: Any, output_stride: int, convention: str = "torchvision", multi_grid: Sequence[int] | None = None
) -> None:
    """Set strides, dilations and paddings of a ResNet of timm, in place."""
    reduction, rate = 4, 1
    for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
        before, stride = rate, 2
        if reduction == output_stride:
            rate, stride = 2 * rate, 1
        reduction *= stride
        grid = multi_grid if multi_grid is not None and layer is trunk.layer4 else [1] * len(layer)
        if len(grid) != len(layer):
            raise ValueError(f"multi_grid: expected {len(layer)} factors, one for each block, got {len(grid)}")
        for i, (block, factor) in enumerate(zip(layer, grid, strict=True)):
            first = before if i == 0 and convention == "torchvision" else rate * factor
            _set_block(block, stride if i == 0 else 1, first, rate * factor, convention == "caffe")


def _set_block(block: Any, stride: int, first: int, rate: int, stride_first: bool) -> None:
    """First is the dilation of the (first) 3 x 3 convolution, rate that of the other one of a basic block."""
    bottleneck = hasattr(block, "conv3")
    spatial = [(block.conv2, first)] if bottleneck else [(block.conv1, first), (block.conv2, rate)]
    for conv, dilation in spatial:
        conv.stride, conv.dilation, conv.padding = (1, 1), (dilation, dilation), (dilation, dilation)
    # A mean or blur that strides, in the block (resnetaa50) or its shortcut (resnet50d), is left out where it does not.
    if isinstance(block.aa, nn.Identity):
        (block.conv1 if stride_first or not bottleneck else block.conv2).stride = (stride, stride)
    elif stride == 1:
        block.aa = nn.Identity()
    if block.downsample is None:
        return
    if not isinstance(block.downsample[0], nn.AvgPool2d):
        block.downsample[0].stride = (stride, stride)
    elif stride == 1:
        block.downsample[0] = nn.Identity()
