"""The plain classifier, and the auxiliary head of most models."""

from __future__ import annotations

from torch import Tensor, nn

from ... import _checks
from .layers import Activation, conv_norm_act


class FCNHead(nn.Sequential):
    """3 x 3 convolution, normalisation, activation, dropout, 1 x 1 convolution.

    Args:
        in_channels: C.
        num_classes: K.
        channels: between the two convolutions. Default C / 4, torchvision's.
        index: which of the features to read. Default the last; -2 is the auxiliary head's.
        bias: whether the first convolution has one.
        dropout: its probability.
        whole_channels: drop channels, as semseg and its followers do, and not single numbers, as torchvision does.
            Default no.
        act: the activation. Default ReLU.

    Raises:
        TypeError, ValueError: for ``num_classes`` that is no integer of at least 1.

    Shape:
        a list of features to ``(N, K, h, w)``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int | None = None,
        *,
        index: int = -1,
        bias: bool = False,
        dropout: float = 0.1,
        whole_channels: bool = False,
        act: Activation = nn.ReLU,
    ):
        inner = in_channels // 4 if channels is None else channels
        _checks.count("num_classes", num_classes, 1)
        super().__init__(
            *conv_norm_act(in_channels, inner, bias=bias, act=act),
            nn.Dropout2d(dropout) if whole_channels else nn.Dropout(dropout),
            nn.Conv2d(inner, num_classes, 1),
        )
        self.index = index

    def forward(self, features: list[Tensor]) -> Tensor:
        """The features to logits."""
        return super().forward(features[self.index])
