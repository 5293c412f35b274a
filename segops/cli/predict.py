"""``python -m segops predict``: label pictures and overlays of photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._run import bar, chosen_device, fail, last_line, needs
from .evaluate import inference


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run, whose best weights are taken, or a checkpoint.")],
    photos: Annotated[Path, typer.Argument(help="A photo, or a folder of photos.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("predictions"),
    window: Annotated[tuple[int, int] | None, typer.Option(help="Rows and columns of sliding windows.")] = None,
    tta: Annotated[bool, typer.Option(help="Average over three scales and their mirrors.")] = False,
    crf: Annotated[bool, typer.Option(help="Refine with the dense CRF.")] = False,
    crf_option: Annotated[
        list[str] | None, typer.Option(help="Of segops.dense_crf: iterations=5, bilateral_sigma_xy=40.")
    ] = None,
    probabilities: Annotated[bool, typer.Option(help="Write float16 (classes, H, W) as NAME.npy too.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
) -> None:
    """Write NAME_labels.png (indexed, in the colours of the classes) and NAME_overlay.png for each photo."""
    try:
        from segops.data.files import DataError, read_image
        from segops.data.layouts import pictures
        from segops.training.evaluation import segment
        from segops.training.fit import load_task
    except ModuleNotFoundError as error:
        needs("models,train,cli", error)
    try:
        task = load_task(run).to(chosen_device(device))
        how = inference(window, tta, crf, crf_option)
        paths = pictures(photos) if photos.is_dir() else [photos]
        if not paths:
            fail(f"{photos}: expected photos, there is none in the folder")
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError) as error:
        fail(last_line(error))
    failed = 0
    for path in bar("photos")(paths):
        try:
            photo = read_image(path)
            write(segment(task, photo, how), photo, np.array(task.colours, np.uint8), output / path.stem, probabilities)
        except DataError as error:
            typer.echo(f"error: {error}", err=True)
            failed += 1
        except (TypeError, ValueError) as error:  # of an option
            fail(last_line(error))
        except OSError as error:
            fail(f"{output}: could not write the results of {path.name}, {error.strerror or error}")
    typer.echo(f"{len(paths) - failed} of {len(paths)} photos, written to {output}")
    if failed:
        raise typer.Exit(1)


def write(logits: Any, photo: np.ndarray, colours: np.ndarray, stem: Path, probabilities: bool) -> None:
    """Labels, overlay and, if asked for, probabilities of one photo."""
    from PIL import Image

    from segops.viz import overlay, save

    labels = logits.argmax(0).cpu().numpy().astype(np.uint8)
    indexed = Image.fromarray(labels)
    indexed.putpalette(colours.tobytes())
    indexed.save(stem.with_name(f"{stem.name}_labels.png"))
    save(stem.with_name(f"{stem.name}_overlay.png"), overlay(photo, labels, colours))
    if probabilities:
        np.save(stem.with_name(f"{stem.name}.npy"), logits.softmax(0).half().cpu().numpy())
