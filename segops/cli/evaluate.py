"""``python -m segops evaluate``: the per-class table of a trained model on a split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._run import bar, chosen_device, fail, last_line, needs, pairs

if TYPE_CHECKING:
    from segops.training.evaluation import Evaluation, Inference


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, whose best weights are taken, or a checkpoint.")],
    data: Annotated[str | None, typer.Option(help="Folder of the data set. Default: that of the run.")] = None,
    layout: Annotated[str, typer.Option(help="folder, voc, cityscapes, ade20k or auto.")] = "auto",
    split: str = "val",
    window: Annotated[tuple[int, int] | None, typer.Option(help="Rows and columns of sliding windows.")] = None,
    tta: Annotated[bool, typer.Option(help="Average over three scales and their mirrors.")] = False,
    crf: Annotated[bool, typer.Option(help="Refine with the dense CRF.")] = False,
    crf_option: Annotated[
        list[str] | None, typer.Option(help="Of segops.dense_crf: iterations=5, bilateral_sigma_xy=40.")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst photos to draw.")] = 8,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: evaluation-SPLIT in that of the run.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
) -> None:
    """Print IoU and accuracy of each class; write them as JSON, with the confusion matrix and the worst photos."""
    try:
        from segops.data.datasets import open_data
        from segops.training.evaluation import evaluate as run_evaluation
        from segops.training.fit import load_task
        from segops.training.pictures import draw_matrix, draw_panels
    except ModuleNotFoundError as error:
        needs("models,train,cli", error)
    try:
        task = load_task(run).to(chosen_device(device))
        recipe = task.recipe
        root = recipe.data if data is None else data
        names = task.names if data is None else recipe.class_names()
        samples = open_data(root, split, layout=recipe.layout if data is None else layout, names=names)
        how = inference(window, tta, crf, crf_option)
        output = (run if run.is_dir() else run.parent) / f"evaluation-{split}" if output is None else output
        output.mkdir(parents=True, exist_ok=True)
        found = run_evaluation(task, samples, how, bar("photos"))
        show(found, f"{recipe.model} on {split}: {how}")
        (output / "metrics.json").write_text(json.dumps({"inference": str(how), **found.summary()}, indent=1))
        draw_matrix(found.matrix.numpy(), found.names, output / "confusion_matrix.png")
        if worst:
            draw_panels(task, samples, found.worst(worst), output / "worst.png", how)
    except (ValueError, TypeError, OSError) as error:
        fail(last_line(error))
    typer.echo(f"written: metrics.json, confusion_matrix.png{', worst.png' if worst else ''} in {output}")


def inference(window: tuple[int, int] | None, tta: bool, crf: bool, crf_option: list[str] | None) -> Inference:
    """What the options say of how photos are segmented."""
    from segops.training.evaluation import SCALES, Inference

    scales = SCALES if tta else (1.0,)
    return Inference(window=window, scales=scales, flip=tta, crf=crf, crf_options=pairs(crf_option or []))


def show(found: Evaluation, title: str) -> None:
    """Print the table of classes."""
    from rich.console import Console
    from rich.table import Table

    summary = found.summary()
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for column in ("IoU", "accuracy", "share of pixels"):
        table.add_column(column, justify="right")
    pixels = max(1, int(found.matrix.sum()))
    for name, row in summary["classes"].items():
        table.add_row(name, *(percent(x) for x in (row["iou"], row["accuracy"], row["pixels"] / pixels)))
    table.add_section()
    table.add_row("mean", percent(summary["mean_iou"]), percent(summary["mean_accuracy"]), "")
    Console().print(table)
    typer.echo(f"mean IoU {summary['mean_iou']:.4f}, accuracy of pixels {summary['pixel_accuracy']:.4f}")


def percent(x: float) -> str:
    """Of a share; a class that is nowhere has none."""
    return "-" if x != x else f"{100 * x:.1f} %"
