"""FCN-32s, 16s and 8s on VGG's network of 16 layers: scores of pools, summed on the way up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import _checks
from .model import SegmentationModel
from .parts.deconv import BilinearDeconv
from .parts.padding import crop
from .parts.vgg import CHANNELS, VGG16, load_imagenet
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Fully Convolutional Networks for Semantic Segmentation",
    authors="Long, Shelhamer, Darrell",
    year=2015,
    venue="CVPR",
    url="https://arxiv.org/abs/1411.4038",
    family="fully convolutional",
    canonical="FCN-8s on VGG16; FCN-16s and FCN-32s by stride, the training at once by at_once",
    uncertain="The released nets count their transposed convolutions, from all classes to all, as parameters that are "
    "never trained. Here fixed ones are no parameters; with learn_deconv they are as many as in the released nets. "
    "That scores begin at zero is the default of Caffe, which the paper does not name.",
    fidelity="structural",
    kernels=(),
    anchors=(
        Anchor(134_362_751, {"num_classes": 21}, "released prototxt, without its fixed transposed convolutions"),
        Anchor(134_357_354, {"num_classes": 21, "stride": 16}, "as before"),
        Anchor(134_346_581, {"num_classes": 21, "stride": 32}, "as before"),
        Anchor(134_489_759, {"num_classes": 21, "learn_deconv": True}, "released prototxt"),
        Anchor(134_815_994, {"num_classes": 21, "stride": 16, "learn_deconv": True}, "released prototxt"),
        Anchor(136_152_917, {"num_classes": 21, "stride": 32, "learn_deconv": True}, "released prototxt"),
    ),
    small={"num_classes": 5, "channels": (4, 8, 8, 16, 16), "fc_channels": 32},
)
STRIDES = (8, 16, 32)
# Where the image begins in the map of each stride, and the map of each step in the scores of its pool: what the
# padding of 100 of the first convolution and the borders of transposed convolutions leave over.
OFFSETS = {32: 19, 16: 27, 8: 31}
POOL_OFFSETS = (5, 9)
AT_ONCE = (1e-2, 1e-4)


class _Scores(nn.Module):
    """The features of all stages to logits at the resolution of the padded image."""

    def __init__(self, channels: Sequence[int], fc_channels: int, num_classes: int, stride: int, learn: bool):
        super().__init__()
        steps = STRIDES[::-1].index(stride)
        self.fc6, self.fc7 = nn.Conv2d(channels[-1], fc_channels, 7), nn.Conv2d(fc_channels, fc_channels, 1)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(0.5)
        self.score = nn.Conv2d(fc_channels, num_classes, 1)
        self.pool_scores = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in (channels[3], channels[2])[:steps])
        self.doubles = nn.ModuleList(BilinearDeconv(num_classes, 2, learn=learn, dense=True) for _ in range(steps))
        self.up = BilinearDeconv(num_classes, stride, learn=learn, dense=True)
        self.scales: tuple[float, ...] = (1.0, 1.0)
        for conv in (self.score, *self.pool_scores):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        for fc in (self.fc6, self.fc7):
            x = self.dropout(self.relu(fc(x)))
        x = self.score(x)
        pools = (features[3], features[2])
        for pool, score, double, offset, scale in zip(
            pools, self.pool_scores, self.doubles, POOL_OFFSETS, self.scales, strict=False
        ):
            x = double(x)
            x = x + crop(score(pool if scale == 1 else scale * pool), x.shape[-2:], offset)
        return self.up(x)


@register_model("fcn_vgg", CARD)
class FCNVGG(SegmentationModel):
    """VGG16 whose fully connected layers are convolutions, with scores of pool 4 and pool 3 added on the way up.

    The paper trains stride 32 first and each finer one from the coarser, or stride 8 at once; its loss is the sum over
    pixels, for which its learning rates are.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        stride: 8, 16 or 32: of the finest scores. Default 8.
        pretrained: ImageNet weights of VGG16, its fully connected layers with them. Default no.
        at_once: scale pool 4 by 0.01 and pool 3 by 0.0001, for training at once. Default no.
        learn_deconv: train the transposed convolutions, from all classes to all, which begin as bilinear. Default they
            are fixed.
        channels: of the five stages of the trunk. Default VGG's.
        fc_channels: of the fully connected layers. Default 4096.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ImportError: for ``pretrained`` without timm.
        ValueError: for a stride that there is not.

    Example:
        >>> import torch, segops
        >>> model = segops.models.FCNVGG(5, channels=(4, 8, 8, 16, 16), fc_channels=32).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 21,
        *,
        stride: int = 8,
        pretrained: bool = False,
        at_once: bool = False,
        learn_deconv: bool = False,
        channels: Sequence[int] = CHANNELS,
        fc_channels: int = 4096,
    ):
        _checks.count("num_classes", num_classes, 1)
        if stride not in STRIDES:
            raise ValueError(f"stride: expected one of {STRIDES}, got {stride!r}")
        trunk = VGG16(channels=channels, first_padding=100)
        head = _Scores(channels, fc_channels, num_classes, stride, learn_deconv)
        if at_once:
            head.scales = AT_ONCE
        if pretrained:
            load_imagenet(trunk, head.fc6, head.fc7)
        super().__init__(trunk, head)
        self.stride = stride

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of logits, which are those of the image's size already."""
        out = self.classifier(self.backbone(image))
        return {"out": crop(out, image.shape[-2:], OFFSETS[self.stride])}
