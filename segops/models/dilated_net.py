"""Dilated convolutions: a front end of VGG16 without its last poolings, and a module that gathers context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from ..nn import AtrousConv2d, accelerate
from .model import SegmentationModel
from .parts.deconv import BilinearDeconv
from .parts.padding import crop, mirror_pad
from .parts.vgg import CHANNELS, VGG16, load_imagenet
from .registry import Anchor, Card, register_model

CARD = Card(
    title="Multi-Scale Context Aggregation by Dilated Convolutions",
    authors="Yu, Koltun",
    year=2016,
    venue="ICLR",
    url="https://arxiv.org/abs/1511.07122",
    family="atrous",
    canonical="Dilation8 of Pascal VOC, with the large context module; those of other data sets and the front end "
    "alone by variant",
    uncertain="Where the released programs interpolate probabilities from the corner of each cell of 8 x 8 pixels, "
    "logits are interpolated from its centre here. The released Dilation10 counts its fixed transposed convolution as "
    "parameters, which learn_deconv does. The noise of the first weights is 0.01 in the basic module; in the large "
    "one it is less by the same factor as the identity.",
    fidelity="structural",
    kernels=("atrous_conv2d",),
    anchors=(
        Anchor(141_149_720, {"num_classes": 21}, "released prototxt"),
        Anchor(134_346_581, {"num_classes": 21, "variant": "front_end"}, "released prototxt"),
        Anchor(134_313_443, {"num_classes": 11, "variant": "camvid"}, "released prototxt"),
        Anchor(134_312_343, {"num_classes": 11, "variant": "kitti"}, "released prototxt"),
        Anchor(134_373_043, {"num_classes": 19, "variant": "cityscapes", "learn_deconv": True}, "released prototxt"),
    ),
    small={"num_classes": 5, "channels": (4, 4, 8, 8, 8), "fc_channels": 16},
)
# Dilations of the 3 x 3 convolutions of the context module, before one of 1 x 1.
VARIANTS: dict[str, tuple[int, ...]] = {
    "voc": (1, 1, 2, 4, 8, 16, 1),
    "camvid": (1, 1, 2, 4, 8, 16, 1),
    "kitti": (1, 1, 2, 4, 8, 1),
    "cityscapes": (1, 1, 2, 4, 8, 16, 32, 64, 1),
    "front_end": (),
}
LARGE = (2, 2, 4, 8, 16, 32, 32)  # channels after each, over classes, of the large module, which is VOC's
STRIDE = 8
MARGIN = 186  # what the convolutions of the front end take each side


def _front_end(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    """The layers that were fully connected."""
    fc6 = AtrousConv2d(in_channels, channels, 7, dilation=4)
    fc7, score = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(score.weight, std=0.001)
    return nn.Sequential(fc6, nn.ReLU(), nn.Dropout(0.5), fc7, nn.ReLU(), nn.Dropout(0.5), score)


def _context(num_classes: int, dilations: Sequence[int], large: bool) -> nn.Sequential:
    """3 x 3 convolutions of growing dilation and one of 1 x 1, which change nothing at first."""
    module, before = nn.Sequential(), num_classes
    for i, rate in enumerate(dilations):
        after = num_classes * (LARGE[i] if large else 1)
        # The large module has the borders of all its convolutions on the first.
        padding = rate if not large else sum(dilations) if i == 0 else 0
        module.extend([nn.Conv2d(before, after, 3, padding=padding, dilation=rate), nn.ReLU()])
        before = after
    if dilations:
        module.append(nn.Conv2d(before, num_classes, 1))
    begin_as_identity(module, num_classes)
    accelerate(module)
    return module


def begin_as_identity(context: nn.Sequential, num_classes: int, noise: float = 0.01) -> None:
    """Set the weights of a context module so that positive scores come through as they are, but for some noise.

    The channels of a layer are in groups, one for each class; those of a group average that of the layer before.
    """
    for conv in context:
        if isinstance(conv, nn.Conv2d):
            after, before = conv.out_channels, conv.in_channels
            share = num_classes / after
            nn.init.normal_(conv.weight, std=noise * share)
            groups = [torch.arange(n) * num_classes // n for n in (after, before)]
            middle = conv.kernel_size[0] // 2
            with torch.no_grad():
                conv.weight[:, :, middle, middle].masked_fill_(groups[0][:, None] == groups[1], share)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


@register_model("dilated_net", CARD)
class DilatedNet(SegmentationModel):
    """VGG16 at stride 8 without padding on the mirrored image, then convolutions whose view grows with each.

    The paper trains the front end first, then the context module, then both.

    Args:
        num_classes: K. Default 21, Pascal VOC's.
        variant: ``"voc"`` (default), ``"camvid"``, ``"kitti"`` or ``"cityscapes"``, whose context modules differ, or
            ``"front_end"`` for none.
        pretrained: ImageNet weights of VGG16, its fully connected layers with them. Default no.
        learn_deconv: train the transposed convolution at the end of ``"cityscapes"``. Default it is fixed.
        channels: of the five stages of the trunk. Default VGG's.
        fc_channels: of the layers that were fully connected. Default 4096.

    Shape:
        ``(N, 3, H, W)`` to ``(N, K, H, W)``; in training a dict, ``"out"``.

    Raises:
        ImportError: for ``pretrained`` without timm.
        ValueError: for a variant that there is not, and for ``learn_deconv`` with one that has none.

    Example:
        >>> import torch, segops
        >>> model = segops.models.DilatedNet(5, "camvid", channels=(4, 4, 8, 8, 8), fc_channels=16).eval()
        >>> model(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        num_classes: int = 21,
        variant: str = "voc",
        *,
        pretrained: bool = False,
        learn_deconv: bool = False,
        channels: Sequence[int] = CHANNELS,
        fc_channels: int = 4096,
    ):
        _checks.count("num_classes", num_classes, 1)
        dilations = VARIANTS[_checks.choice("variant", variant, tuple(VARIANTS))]
        if learn_deconv and variant != "cityscapes":
            raise ValueError(f"learn_deconv: expected False but with variant='cityscapes', got variant={variant!r}")
        pools = (*[(2, 2)] * 3, None, None)
        trunk = VGG16(channels=channels, padding=False, pools=pools, dilations=(1, 1, 1, 1, 2))
        front = _front_end(channels[-1], fc_channels, num_classes)
        if pretrained:
            load_imagenet(trunk, *[layer for layer in front if isinstance(layer, nn.Conv2d)][:2])
        context = _context(num_classes, dilations, variant == "voc")
        super().__init__(trunk, nn.Sequential(front, context))
        deconv = BilinearDeconv(num_classes, STRIDE, padding=STRIDE // 2, learn=learn_deconv)
        self.up = deconv if variant == "cityscapes" else nn.Upsample(scale_factor=STRIDE, mode="bilinear")

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """The maps of logits, which are those of the image's size already."""
        size = image.shape[-2:]
        image = mirror_pad(image, *((MARGIN, MARGIN + -side % STRIDE) for side in size))
        return {"out": crop(self.up(self.classifier(self.backbone(image)[-1])), size)}
