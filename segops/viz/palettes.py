"""The colours of data sets' labels."""

from __future__ import annotations

import numpy as np

from ..data import palette as distinct_palette

_CITYSCAPES = """
804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046 003c64 005064
0000e6 770b20"""
_CAMVID = "808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"
_ADE20K = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c
ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47
ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00
1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300
ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8
001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff
a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00
ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc
2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"""
_TABLES = {"cityscapes": _CITYSCAPES, "camvid": _CAMVID, "ade20k": _ADE20K}
PALETTES = ("voc", "cityscapes", "camvid", "ade20k", "distinct")


def palette(name: str, classes: int | None = None) -> np.ndarray:
    """The colours of a data set's labels.

    Args:
        name: ``"voc"`` (PASCAL VOC 2012, by its rule: up to 256 colours, 21 by default, also of COCO-Stuff and others),
            ``"cityscapes"`` (the 19 classes of training), ``"camvid"`` (11 classes, as SegNet), ``"ade20k"`` (150
            classes of SceneParse150, labels 0 to 149), or ``"distinct"`` (for any number of classes, 21 by default).
        classes: how many colours. Default: all that the data set has.

    Returns:
        uint8 ``(classes, 3)``.

    Raises:
        ValueError: for another name, or more classes than there are colours.

    Example:
        >>> import segops
        >>> segops.viz.palette("voc")[:3].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    if name not in PALETTES:
        raise ValueError(f"name: expected one of {', '.join(map(repr, PALETTES))}, got {name!r}")
    if name in _TABLES:
        colours = np.frombuffer(bytes.fromhex(_TABLES[name]), np.uint8).reshape(-1, 3).copy()
        most = len(colours)
    else:
        most = 256
    count = (most if name in _TABLES else 21) if classes is None else classes
    if not 0 <= count <= most:
        raise ValueError(f"classes: expected 0 to {most} for {name!r}, got {classes}")
    if name in _TABLES:
        return colours[:count]
    return _voc(count) if name == "voc" else distinct_palette(count)


def _voc(count: int) -> np.ndarray:
    """PASCAL VOC's rule: bits 0, 3, 6 of a label are the highest bits of red, 1, 4, 7 of green, 2, 5 of blue."""
    label = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for channel in range(3):
        for place in range(8):
            bit = label >> (3 * place + channel) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours
