"""``python -m segops models``: every model of the package, and the pages of the documentation about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ._run import bar, fail, needs


def models(
    pattern: Annotated[str, typer.Argument(help="Names, with the wildcards of a shell.")] = "*",
    family: Annotated[str | None, typer.Option(help="Only of this family: attention, atrous, ...")] = None,
    cost: Annotated[bool, typer.Option(help="Count multiply-adds at 512 x 512.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    pages: Annotated[Path | None, typer.Option(help="Write the documentation's pages into this folder.")] = None,
) -> None:
    """List the models: year, family, parameters, multiply-adds at 512 x 512, the kernels of segops they run on."""
    try:
        from segops.models import list_models
    except ModuleNotFoundError as error:
        needs("models", error)
    try:
        names = list_models(pattern, family=family)
    except ValueError as error:
        fail(str(error))
    if not names:
        fail(f"pattern: expected one that a model has, got {pattern!r}; all: {', '.join(list_models())}")
    counting = bar("models") if cost and not as_json else iter
    rows = sorted((row(name, cost) for name in counting(names)), key=lambda r: (r["year"], r["name"]))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        show(rows)
    if pages is not None:
        write_pages(rows, pages)


def row(name: str, cost: bool = True) -> dict[str, Any]:
    """What is told of a model, of the build of its first anchor."""
    import torch

    from segops.models import create_model, model_card
    from segops.models.cost import multiply_adds, parameters

    card = model_card(name)
    options = card.anchors[0].options if card.anchors else {}
    with torch.device("meta"):
        model = create_model(name, **options)
    size = None if not cost else multiply_adds(model)
    return {
        "name": name,
        "year": card.year,
        "venue": card.venue,
        "family": card.family,
        "fidelity": card.fidelity,
        "options": options,
        "parameters": parameters(model),
        "multiply_adds": size,
        "kernels": list(card.kernels),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="models, each as its paper has it first", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("year", "parameters", "multiply-adds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("family", overflow="fold")
    table.add_column("kernels", overflow="fold")
    for r in rows:
        table.add_row(
            r["name"], str(r["year"]), millions(r["parameters"]), billions(r["multiply_adds"]), r["family"],
            ", ".join(r["kernels"]),
        )  # fmt: skip
    Console().print(table)


def millions(x: int) -> str:
    """Parameters as people say them."""
    return f"{x / 1e6:.2f} M"


def billions(x: int | None) -> str:
    """Multiply-adds as people say them."""
    return "" if x is None else f"{x / 1e9:.1f} G"


def write_pages(rows: list[dict[str, Any]], folder: Path) -> None:
    """index.md with all models by family, and a page for each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.md").write_text("\n".join(index(rows)) + "\n")
    for r in rows:
        (folder / f"{r['name']}.md").write_text("\n".join(page(r)) + "\n")


def index(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The page of all models."""
    from segops.models import FAMILIES

    yield "# Models\n"
    yield "Made by `python -m segops models --pages docs/models` from the cards in the code; do not edit it.\n"
    yield (
        "Each is one file, `segops/models/NAME.py`, and made by `segops.models.create_model(NAME, ...)`. Parameters "
        "are those of the first build that its card names, and held to the last one by a test; multiply-adds are of an "
        "image of 512 x 512 in evaluation, counted by `segops.models.cost`."
    )
    for family in FAMILIES:
        of_family = [r for r in rows if r["family"] == family]
        if not of_family:
            continue
        yield f"\n## {family.capitalize()}\n"
        yield "| model | year | parameters | multiply-adds | kernels | how it is proven |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for r in of_family:
            cells = [f"[{r['name']}]({r['name']}.md)", f"{r['venue']} {r['year']}", millions(r["parameters"])]
            cells += [billions(r["multiply_adds"]), ", ".join(f"`{k}`" for k in r["kernels"]) or "none", r["fidelity"]]
            yield f"| {' | '.join(cells)} |"
    yield "\nHow a model is proven:\n"
    yield "- **verified**: also by the outputs of an independent build with the same weights;"
    yield "- **structural**: by parameters, layers, sizes, and its head against the equations of the paper;"
    yield "- **partial**: the same, with parts that the sources leave open;"
    yield "- **reconstruction**: what the paper does not say is decided here."


def page(r: dict[str, Any]) -> Iterator[str]:
    """The page of a model."""
    from segops.models import model_card

    card = model_card(r["name"])
    call = ", ".join([f'"{r["name"]}"', *told(r["options"])])
    yield f"# {r['name']}\n"
    yield "Made by `python -m segops models --pages docs/models` from the card in the code; do not edit it.\n"
    yield f"{card.authors}, *[{card.title}]({card.url})*, {card.venue} {card.year}. Family: {card.family}.\n"
    yield "```python"
    line = f"model = segops.models.create_model({call})"
    yield line if len(line) <= 120 else f"model = segops.models.create_model(\n    {call}\n)"
    yield "```\n"
    yield f"- **What is built**: {card.canonical}."
    yield f"- **What the sources leave open**: {card.uncertain or 'nothing.'}"
    yield f"- **Proven**: {card.fidelity}."
    yield f"- **Kernels**: {', '.join(f'`segops.{kernel}`' for kernel in card.kernels) or 'none of segops'}."
    if r["multiply_adds"] is not None:
        yield f"- **Multiply-adds** of the build above at 512 x 512: {billions(r['multiply_adds'])}."
    if card.without_gradient:
        yield f"- **Parameters without gradient**, by design: {', '.join(f'`{p}`' for p in card.without_gradient)}."
    if card.anchors:
        yield "\n| parameters | options | source |"
        yield "| --- | --- | --- |"
        for anchor in card.anchors:
            yield f"| {anchor.parameters:,} | `{', '.join(told(anchor.options)) or 'defaults'}` | {anchor.source} |"


def told(options: dict[str, Any]) -> list[str]:
    """NAME=VALUE, as they are written in a call."""
    return [f"{name}={json.dumps(x) if isinstance(x, str) else repr(x)}" for name, x in options.items()]
