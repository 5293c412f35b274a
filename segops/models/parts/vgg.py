"""The trunk of VGG's network of 16 layers, in the forms that models of segmentation gave it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...nn import AtrousConv2d
from .encoder import _timm

CHANNELS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)


class VGG16(nn.Module):
    """Thirteen 3 x 3 convolutions in five stages, each stage but for its pooling at one resolution.

    Args:
        channels: of the five stages. Default VGG's.
        norm: batch normalisation after each convolution.
        in_channels: of the image.
        padding: whether convolutions keep the size.
        first_padding: of the first convolution alone. Default as the others; FCN's is 100.
        pools: (kernel, stride) of the max-pooling after each stage, or None where there is none; it is padded by
            (kernel - 1) // 2.
        dilations: of the convolutions of each stage.
        ceil_mode: pooling rounds up, as Caffe's does.
        pretrained: ImageNet weights of timm's ``vgg16`` or ``vgg16_bn``. Default He's random ones.

    Shape:
        ``(N, in_channels, H, W)`` to a list of five maps, each after the pooling of its stage.

    Raises:
        ImportError: for ``pretrained`` without timm.
        ValueError: for lists that have not one entry for each stage; for ``pretrained`` with other channels.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = CHANNELS,
        norm: bool = False,
        in_channels: int = 3,
        padding: bool = True,
        first_padding: int | None = None,
        pools: Sequence[tuple[int, int] | None] = ((2, 2),) * 5,
        dilations: Sequence[int] = (1,) * 5,
        ceil_mode: bool = True,
        pretrained: bool = False,
    ):
        super().__init__()
        for name, given in (("channels", channels), ("pools", pools), ("dilations", dilations)):
            if len(given) != len(DEPTHS):
                raise ValueError(f"{name}: expected {len(DEPTHS)}, one for each stage, got {len(given)}")
        self.channels = tuple(channels)
        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for width, depth, pool, dilation in zip(channels, DEPTHS, pools, dilations, strict=True):
            layers: list[nn.Module] = []
            for _ in range(depth):
                border = dilation if padding else 0
                if first_padding is not None and not self.stages and not layers:
                    border = first_padding
                make = nn.Conv2d if dilation == 1 else AtrousConv2d
                conv = make(before, width, 3, padding=border, dilation=dilation)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()] if norm else [conv, nn.ReLU()]
                before = width
            self.stages.append(nn.Sequential(*layers))
            self.pools.append(
                nn.Identity() if pool is None else nn.MaxPool2d(*pool, (pool[0] - 1) // 2, ceil_mode=ceil_mode)
            )
        if pretrained:
            load_imagenet(self, norm=norm)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The image to the features of all stages."""
        features = []
        x = image
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(stage(x))
            features.append(x)
        return features


def load_imagenet(trunk: VGG16, *fully_connected: nn.Conv2d, norm: bool = False) -> None:
    """Load weights of timm's VGG, in place: those of the trunk, and of the first fully connected layers.

    Args:
        trunk: with VGG's channels.
        fully_connected: fc6, a convolution of 7 x 7, and fc7.
        norm: whether the trunk has batch normalisation.

    Raises:
        ImportError: without timm.
        ValueError: for layers that have other channels than VGG's.
    """
    source = _timm().create_model("vgg16_bn" if norm else "vgg16", pretrained=True)
    theirs = [m for m in source.features if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    ours = [m for m in trunk.stages.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    theirs += [source.pre_logits.fc1, source.pre_logits.fc2][: len(fully_connected)]
    for mine, given in zip([*ours, *fully_connected], theirs, strict=True):
        if mine.weight.shape != given.weight.shape:
            raise ValueError(
                f"pretrained: expected VGG's channels, {tuple(given.weight.shape)}, got {tuple(mine.weight.shape)}"
            )
        mine.load_state_dict(given.state_dict())
