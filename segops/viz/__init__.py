"""Pictures of segmentations: palettes, coloured labels, overlays, panels and maps of errors.

NumPy in, NumPy out: pictures are uint8 ``(H, W, 3)``, labels integer ``(H, W)``. Only :func:`save` needs pillow, which
the extra ``cli`` brings. No function changes what it is given.
"""

from .palettes import palette
from .pictures import colorize, error_map, overlay, panel, save, shade

__all__ = ["colorize", "error_map", "overlay", "palette", "panel", "save", "shade"]
