"""``python -m segops bench``: every kernel against every peer, by the rows of the checkout's ``benchmarks/``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from ._run import fail


def bench(
    op: Annotated[str | None, typer.Option(help="One operator, or several with commas between. Default: all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One small workload of each operator, a few rounds.")] = False,
    base: Annotated[str | None, typer.Option(help="A git revision: measure its segops too, and compare.")] = None,
    json: Annotated[Path | None, typer.Option(help="The file to write every figure into.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The folder to draw speed-ups, growth and roofline into.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="On a CPU. Default: all.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="When no workload is started any more. Default: 13.5, with --quick 2.5."),
    ] = None,
) -> None:
    """Compare every kernel with its peers: the gate, time, memory, and the distance to what the machine allows."""
    folder = Path(__file__).parents[2] / "benchmarks"
    if not (folder / "bench_types.py").exists():
        fail("it needs a checkout: the benchmarks are beside the package there, and no part of a wheel")
    sys.path.insert(0, str(folder))
    from rich.console import Console

    run, table = importlib.import_module("run"), importlib.import_module("table")
    console = Console(width=table.WIDTH, highlight=False)
    options = {"op": op, "device": device, "quick": quick, "threads": threads, "minutes": minutes}
    try:
        result = run.bench(**options, ours=base is not None, console=console)
        table.summary(console, result)
        if base is not None:
            other = importlib.import_module("base")
            result["base"] = {"revision": base, **other.compare(base, options, console)}
            console.print(other.table(result["rows"], result["base"]["rows"], base))
    except ValueError as error:
        fail(str(error))
    if json is not None:
        run.write(result, json)
        console.print(f"every figure: {json}")
    if plot is not None:
        for path in importlib.import_module("plots").draw(result, plot):
            console.print(f"plot: {path}")
