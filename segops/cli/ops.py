"""``python -m segops ops``: every operator, its backends on this machine, the reason for each missing one."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ._run import fail


def ops(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the operators, which backends each has here, and why the others are missing."""
    from segops import _backends

    try:
        rows = _backends.table()
    except ValueError as error:  # SEGOPS_BACKEND is none
        fail(str(error))
    if as_json:
        typer.echo(json.dumps([{"operator": name, "backends": dict(backends)} for name, backends in rows], indent=2))
        return

    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(backend for _, backends in rows for backend in backends))
    reasons: dict[str, int] = {}  # each reason is printed once, below the table, under its number
    table = Table("operator", *columns)
    for name, backends in rows:
        cells = []
        for backend in columns:
            reason = backends.get(backend, "this operator has no such kernel")
            cells.append(
                "[green]yes[/]" if reason is None else f"[dim]no ({reasons.setdefault(reason, len(reasons) + 1)})[/]"
            )
        table.add_row(name, *cells)
    console = Console(highlight=False)
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"({number}) {reason}", markup=False, soft_wrap=True)
