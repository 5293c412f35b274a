"""Pictures of a run: learning curves, the confusion matrix, photos beside masks and predictions."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.datasets import SegmentationData
from ..viz import error_map, overlay, panel, save
from .evaluation import Inference, segment
from .task import SegmentationTask

PANELS = 4


def draw_panels(
    task: SegmentationTask, data: SegmentationData, indices: Sequence[int], path: Path, how: Inference | None = None
) -> None:
    """Rows of photo, mask, prediction and where that is wrong."""
    pictures = []
    for index in indices:
        photo, labels = data.read(index)
        predicted = segment(task, photo, how or Inference()).argmax(0).cpu().numpy().astype(np.uint8)
        pictures += [photo, overlay(photo, labels, data.colours, alpha=0.7)]
        pictures += [overlay(photo, predicted, data.colours, alpha=0.7), error_map(predicted, labels)]
    save(path, panel(pictures, columns=4))


def read_log(run: Path) -> dict[str, dict[int, float]]:
    """Each logged value by epoch, from Lightning's CSV files: one for each time that the run went on."""
    values: dict[str, dict[int, float]] = {}
    for log in sorted(run.glob("logs/version_*/metrics.csv"), key=lambda log: int(log.parent.name.split("_")[1])):
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if value and row["epoch"] and key not in ("epoch", "step"):
                        values.setdefault(key, {})[int(row["epoch"])] = float(value)
    return values


def draw_curves(run: Path, path: Path) -> None:
    """Loss of training and mean IoU of validation over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = read_log(run)
    figure = Figure(figsize=(8, 3), layout="constrained")
    titles = {"train/loss": "loss of training", "val/mean_iou": "mean IoU of validation"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        points = values.get(key, {})
        axes.plot([epoch + 1 for epoch in points], [*points.values()], marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_matrix(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """The confusion matrix, each row as shares of its class."""
    from matplotlib.figure import Figure

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.0, 0.42 * len(names) + 2)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="labelled")
    if len(names) <= 30:
        for (i, j), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    j, i, f"{100 * share:.0f}", ha="center", va="center", size=7, color="w" if share > 0.5 else "k"
                )
    figure.colorbar(image, label="share of the labelled pixels")
    figure.savefig(path, dpi=110)
