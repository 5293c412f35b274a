"""``python -m segops train``: a model on a folder of photos and masks, or on drawn streets."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from segops.training.recipe import SAVED, Recipe, from_mapping, load_values

from ._run import bar, fail, last_line, needs, pairs


def options_of_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of a recipe, None where it is not on the command line."""
    hints = get_type_hints(Recipe)
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = []
    for f in fields(Recipe):
        help_text = f.metadata["help"]
        if f.default not in (None, MISSING):
            help_text += f" Default: {_shown(f.default)}."
        kind: Any = list[str] if f.name == "model_options" else hints[f.name]
        annotation: Any = Annotated[kind | None, typer.Option(help=help_text)]
        added.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = inspect.Signature(own + added)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own + added}
    return command


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@options_of_recipe
def train(
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with values of the options below; what is given here wins.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/MODEL, numbered.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to go on with, by its own recipe.")] = None,
    **values: Any,
) -> None:
    """Train a model: without options a small one on drawn streets, which ends with a picture of predictions."""
    try:
        from segops.training.fit import BEST, LAST, fit, load_task
    except ModuleNotFoundError as error:
        needs("models,train,cli", error)
    try:
        if resume is not None:
            recipe = resume / SAVED
            if not (resume / LAST).is_file():
                fail(f"resume: expected the folder of a run, with {LAST} in it, got {resume}")
        chosen = resolve(recipe, values)
        output = resume or output or free_folder(Path("runs"), chosen.model)
        if resume is None and (output / LAST).exists():
            fail(f"output: there is a run in {output}; go on with it by --resume {output}, or name another folder")
        trainer = fit(chosen, output, resume=resume is not None)
        if trainer.is_global_zero:
            report(output, load_task(output / BEST))
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if interrupted(error):
            saved = output is not None and (output / LAST).exists()
            hint = f"go on with: python -m segops train --resume {output}" if saved else "no epoch was finished"
            typer.echo(f"interrupted; {hint}", err=True)
            raise typer.Exit(130) from error
        if isinstance(error, ValueError | TypeError | OSError):
            fail(last_line(error))
        raise


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of it: Lightning answers with SystemExit, what writes a checkpoint by others."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def resolve(path: Path | None, values: dict[str, Any]) -> Recipe:
    """The recipe of a file, with what the command line says in its place."""
    given = {name: value for name, value in values.items() if value is not None}
    if "model_options" in given:
        given["model_options"] = pairs(given["model_options"])
    base = Recipe() if path is None else from_mapping(load_values(path))
    return replace(base, **given)


def free_folder(parent: Path, name: str) -> Path:
    """parent/name, or the first of name-2, name-3, ... that there is not."""
    numbered = (parent / f"{name}-{i}" for i in itertools.count(2))
    return next(path for path in itertools.chain([parent / name], numbered) if not path.exists())


def report(output: Path, task: Any) -> None:
    """Scores of the best weights on the validation split, and pictures of the run."""
    from segops.training.data import open_split
    from segops.training.evaluation import evaluate
    from segops.training.pictures import PANELS, draw_curves, draw_panels

    from .evaluate import show

    data = open_split(task.recipe, "val", task.names)
    draw_curves(output, output / "curves.png")
    draw_panels(task, data, range(min(PANELS, len(data))), output / "predictions.png")
    show(evaluate(task, data, progress=bar("validation")), f"{task.recipe.model} on val, best epoch")
    typer.echo(f"pictures: {output / 'predictions.png'} (photo, mask, prediction, errors), {output / 'curves.png'}")
    typer.echo(f"weights:  {output / 'best.ckpt'}, for python -m segops evaluate {output} and predict {output}")
