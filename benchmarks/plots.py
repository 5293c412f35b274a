"""Pictures of a result: speed-ups, how time and memory grow, and the distance to the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from report import Row, best, by_op, geometric_mean, listed, ratio, times, where

OURS, LOST = "#2a7fb8", "#c0392b"


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
    return path


def speedups(result: dict[str, Any], folder: Path) -> Path | None:
    """A bar for each operator: the geometric mean of its ratios, their range as a line, red where one loses."""
    rows = listed(result["rows"])
    factors = {op: [f for r in best(group) if (f := ratio(r, group))] for op, group in by_op(rows).items()}
    factors = {op: f for op, f in factors.items() if f}
    if not factors:
        return None
    factors = dict(sorted(factors.items(), key=lambda x: geometric_mean(x[1])))
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(factors)))
    axes = figure.add_subplot()
    for i, f in enumerate(factors.values()):
        mean = geometric_mean(f)
        axes.barh(i, mean - 1, left=1, color=OURS if min(f) >= 1 else LOST, height=0.7)
        axes.plot([min(f), max(f)], [i, i], color="black", linewidth=1.5)
        axes.text(max(*f, 1), i, f"  {times(mean)}", va="center", fontsize=9)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yticks=range(len(factors)), yticklabels=list(factors))
    axes.set(xlabel="times as fast as the fastest correct peer: geometric mean, least and largest; red: a row loses")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1)
    axes.set_title(where(result), fontsize=10)
    return save(figure, folder / "speedups.png")


def lines(axes: Axes, rows: list[Row], quantity: str, label: str) -> None:
    """A line over the size for each provider, and number of threads where it has several: then fewer are dashed."""
    colours = {provider: f"C{i}" for i, provider in enumerate(dict.fromkeys(r["provider"] for r in rows))}
    rows = [r for r in rows if r.get(quantity)]
    counts: dict[str, set[int]] = {}
    for r in rows:
        counts.setdefault(r["provider"], set()).add(r["threads"])
    for provider, threads in dict.fromkeys((r["provider"], r["threads"]) for r in rows):
        points = sorted((r["size"], r[quantity]) for r in rows if (r["provider"], r["threads"]) == (provider, threads))
        name = provider if len(counts[provider]) == 1 else f"{provider}, threads: {threads}"
        axes.plot(
            *zip(*points),
            marker="o",
            label=name,
            color=colours[provider],
            linestyle="-" if threads == max(counts[provider]) else "--",
            linewidth=2.5 if provider.startswith("segops") else 1.2,
            zorder=3 if provider.startswith("segops") else 2,
        )
    axes.set(xscale="log", yscale="log", xlabel="pixels", ylabel=label)
    sizes = sorted({r["size"] for r in rows})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))
    axes.grid(True, which="both", alpha=0.25)
    if axes.lines:
        axes.legend(fontsize=8)


def growth(result: dict[str, Any], folder: Path) -> Path | None:
    """Time and memory against size, all axes logarithmic, for each operator with three sizes or more."""
    sized = by_op(r for r in result["rows"] if r.get("size") and r["status"] == "ok")
    sized = {op: rows for op, rows in sized.items() if len({r["size"] for r in rows}) > 2}
    if not sized:
        return None
    figure = Figure(figsize=(11, 3.6 * len(sized)), layout="constrained")
    for (op, rows), (time, memory) in zip(sized.items(), figure.subplots(len(sized), 2, squeeze=False)):
        lines(time, rows, "median_ms", "ms")
        lines(memory, rows, "peak_mib", "MiB above the inputs")
        time.set_title(op, fontsize=10)
    figure.suptitle(where(result), fontsize=10)
    return save(figure, folder / "growth.png")


def roofline(result: dict[str, Any], folder: Path) -> Path | None:
    """Operations a second over operations a byte, under the two ceilings, where operations are counted."""
    rows = [r for r in best(listed(result["rows"])) if r.get("operations")]
    ceiling = result["ceilings"][-1] if result["ceilings"] else None
    rows = [r for r in rows if ceiling and r["threads"] == ceiling["threads"]]
    if not rows:
        return None
    figure = Figure(figsize=(9, 6))
    axes = figure.add_subplot()
    intensities = [r["operations"] / r["bytes"] for r in rows]
    span = [min(intensities) / 3, max(intensities) * 3]
    for kind, rate in ceiling["matrix_gflop_s"].items():
        ridge = rate / ceiling["copy_gb_s"]
        points = sorted([*span, *([ridge] if span[0] < ridge < span[1] else [])])
        axes.plot(points, [min(rate, x * ceiling["copy_gb_s"]) for x in points], label=f"ceiling, {kind}")
    for op, group in by_op(rows).items():
        x = [r["operations"] / r["bytes"] for r in group]
        axes.scatter(x, [r["operations"] / r["median_ms"] / 1e6 for r in group], label=op, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations for each byte that has to move", ylabel="GFLOP/s")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=7, loc="lower right")
    axes.set_title(where(result), fontsize=10)
    return save(figure, folder / "roofline.png")


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """All pictures that the result has rows for."""
    folder.mkdir(parents=True, exist_ok=True)
    return [path for plot in (speedups, growth, roofline) if (path := plot(result, folder))]
