"""SegNet: a decoder that puts values back where the encoder's max-pooling found them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .. import _checks
from .model import SegmentationModel
from .parts.layers import conv_norm_act
from .parts.vgg import CHANNELS, DEPTHS, VGG16
from .registry import Anchor, Card, register_model

CARD = Card(
    title="SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
    authors="Badrinarayanan, Kendall, Cipolla",
    year=2017,
    venue="PAMI",
    url="https://arxiv.org/abs/1511.00561",
    family="encoder-decoder",
    canonical="SegNet on VGG16, CamVid's 11 classes; SegNet-Basic by basic=True",
    uncertain="",
    fidelity="structural",
    kernels=(),
    anchors=(
        Anchor(29_449_355, {"num_classes": 11}, "released prototxt"),
        Anchor(1_416_587, {"num_classes": 11, "basic": True}, "released prototxt"),
    ),
    small={"num_classes": 5, "channels": (8, 8, 16, 16, 16)},
)


class _Encoder(nn.Module):
    """Stages with max-pooling, which rounds up, after each.

    Shape:
        the image to the last map, and of each stage the places of the maxima and the size before pooling.
    """

    def __init__(self, stages: Sequence[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> tuple[Tensor, list[tuple[Tensor, tuple[int, int]]]]:
        x, pooled = image, []
        for stage in self.stages:
            x = stage(x)
            size = x.shape[-2:]
            x, places = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
            pooled.append((places, size))
        return x, pooled


class _Decoder(nn.Module):
    """Before each stage, values go back to the places where their pooling found them, zeros elsewhere."""

    def __init__(self, stages: Sequence[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, features: tuple[Tensor, list[tuple[Tensor, tuple[int, int]]]]) -> Tensor:
        x, pooled = features
        for stage, (places, size) in zip(self.stages, pooled[::-1], strict=True):
            x = stage(F.max_unpool2d(x, places, [2, 2], [2, 2], output_size=size))
        return x


@register_model("segnet", CARD)
class SegNet(SegmentationModel):
    """VGG16 without fully connected layers, and its mirror image.

    The paper balances the loss by median frequency: weights of classes, for the criterion.

    Args:
        num_classes: K. Default 11, CamVid's.
        pretrained: ImageNet weights of VGG16 with batch normalisation. Default no.
        basic: SegNet-Basic: four stages of one 7 x 7 convolution each, no activation in the decoder, and local response
            normalisation of the image. Default no.
        channels: of the stages. Default VGG's; SegNet-Basic has the first of them in all.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ImportError: for ``pretrained`` without timm.
        ValueError: for ``pretrained`` with ``basic`` or other channels than VGG's.

    Example:
        >>> import torch, segops
        >>> model = segops.models.SegNet(5, channels=(8, 8, 16, 16, 16)).eval()
        >>> model(torch.randn(1, 3, 45, 60)).shape
        torch.Size([1, 5, 45, 60])
    """

    def __init__(
        self,
        num_classes: int = 11,
        *,
        pretrained: bool = False,
        basic: bool = False,
        channels: Sequence[int] = CHANNELS,
    ):
        _checks.count("num_classes", num_classes, 1)
        if basic and pretrained:
            raise ValueError("pretrained: expected False with basic=True, which has no weights of ImageNet")
        down: list[nn.Module]
        if basic:
            width = channels[0]
            norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
            down = [nn.Sequential(norm, *conv_norm_act(3, width, 7, bias=True))]
            down += [conv_norm_act(width, width, 7, bias=True) for _ in range(3)]
            up = [conv_norm_act(width, width, 7, bias=True, act=nn.Identity) for _ in range(4)]
            up[-1].append(nn.Conv2d(width, num_classes, 1))
        else:
            down = list(VGG16(channels=channels, norm=True, pretrained=pretrained).stages)
            up = []
            for i in reversed(range(len(channels))):
                c, after = channels[i], channels[max(i - 1, 0)]
                stage = nn.Sequential(*(conv_norm_act(c, c, bias=True) for _ in range(DEPTHS[i] - 1)))
                stage.append(conv_norm_act(c, after, bias=True) if i else nn.Conv2d(c, num_classes, 3, padding=1))
                up.append(stage)
        super().__init__(_Encoder(down), _Decoder(up))
