"""The picture of the demo: photo, coarse labels, refined labels and confidence side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segops.data import palette
from segops.viz import shade

SMALLEST, LARGEST = 320, 512  # pixels of the longer side of a panel
GAP = 24
DPI = 100


def place(names: Sequence[str], font: int, width: int) -> list[tuple[int, int]]:
    """The column (in pixels) and the row of each legend entry, wrapped to the width."""
    places, x, row = [], 0, 0
    for name in names:
        wide = round(font * (3 + 0.62 * len(name)))
        if x and x + wide > width:
            x, row = 0, row + 1
        places.append((x, row))
        x += wide
    return places


def draw(
    photo: np.ndarray, coarse: np.ndarray, refined: np.ndarray, sure: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """Write the picture as PNG. Every position is in pixels, so that nothing overlaps or is cut off."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height, width = coarse.shape
    scale = min(max(max(height, width), SMALLEST), LARGEST) / max(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    slot = max(w, SMALLEST * 3 // 4)  # a narrow panel still needs room for its title
    font, step = slot // 20, slot + GAP
    places = place(names, font, 3 * slot + 2 * GAP)
    top, line = 2 * font, round(1.7 * font)
    bottom = top + h + GAP
    total, tall = GAP + 4 * step, bottom + max(places[-1][1] + 1, 2) * line + font // 2
    points = font * 72 / DPI

    figure = Figure(figsize=(total / DPI, tall / DPI), dpi=DPI, facecolor="white")

    def axes(x: float, y: float, wide: float, high: float):
        return figure.add_axes((x / total, 1 - (y + high) / tall, wide / total, high / tall))

    page = axes(0, 0, total, tall)
    page.set(xlim=(0, total), ylim=(tall, 0))
    page.set_axis_off()

    colours, norm = palette(len(names)), Normalize(0, 1)
    panels = {
        "photo": photo,
        "coarse labels": shade(photo, coarse, colours),
        "refined by the dense CRF": shade(photo, refined, colours),
        "confidence": sure,
    }
    for i, (title, panel) in enumerate(panels.items()):
        ax = axes(GAP + i * step + (slot - w) // 2, top, w, h)
        ax.imshow(panel, cmap="magma", norm=norm, interpolation="nearest" if scale >= 1 else "auto", aspect="auto")
        ax.set_axis_off()
        page.text(GAP + i * step + slot / 2, top / 2, title, size=points, ha="center", va="center")
    for name, colour, (x, row) in zip(names, colours, places, strict=True):
        corner = (GAP + x, bottom + row * line)
        page.add_patch(Rectangle(corner, font, font, facecolor=colour / 255, edgecolor="black", linewidth=0.5))
        page.text(corner[0] + 1.4 * font, corner[1] + font / 2, name, size=points, va="center_baseline")
    bar = axes(GAP + 3 * step, bottom, slot, font)
    figure.colorbar(ScalarMappable(norm, "magma"), cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.tick_params(labelsize=points * 0.8)
    figure.savefig(path, format="png", dpi=DPI)
