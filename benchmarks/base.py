"""Another revision on the same machine: its segops, with the rows of this one, in a worktree that is thrown away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import ROOT, git
from report import Row, is_ours, milliseconds, times
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


@contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """A checkout of the revision, removed in the end."""
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise ValueError(f"--base: git knows no revision {revision!r} here")
    folder = Path(tempfile.mkdtemp(prefix="segops-base-")) / "segops"
    try:
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(folder), commit], check=True
        )
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))
        shutil.rmtree(folder.parent, ignore_errors=True)


def build(folder: Path, revision: str, console: Console) -> None:
    """Its native libraries: those of this checkout where their sources are the same, else compiled."""
    if subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", revision, "--", "csrc", "setup.py"]).returncode == 0:
        console.print(f"{revision}: its native sources are those of this checkout, whose libraries serve")
        for library in (*ROOT.glob("segops/*.so"), *ROOT.glob("segops/_build_config.json")):
            shutil.copy(library, folder / "segops")
        return
    console.print(f"{revision}: compiling its native libraries (minutes)")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        console.print("\n".join(done.stdout.splitlines()[-40:]), markup=False)
        raise ValueError(f"--base: {revision} does not compile here; the end of the log is above")


def measured(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What run.py says of that revision's segops."""
    target = folder.parent / "base.json"
    environment = {**os.environ, "PYTHONPATH": str(folder), "SEGOPS_BENCH_BASE": "1"}
    command = [sys.executable, str(HERE / "run.py"), str(target), json.dumps({**options, "ours": True})]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        raise ValueError("--base: it could not be measured:\n" + "\n".join(done.stderr.splitlines()[-20:]))
    return json.loads(target.read_text())


def compare(revision: str, options: dict[str, Any], console: Console) -> dict[str, Any]:
    """The result of the other revision; ``options`` are those of run.bench."""
    with worktree(revision) as folder:
        build(folder, revision, console)
        console.print(f"{revision}: measuring")
        return measured(folder, options)


def changes(now: list[Row], base: list[Row]) -> list[tuple[Row, Row]]:
    """The rows of segops that both have figures of."""
    before = {(r["workload"], r["provider"], r["threads"]): r for r in base if r["status"] == "ok"}
    keys = [(r, before.get((r["workload"], r["provider"], r["threads"]))) for r in now if is_ours(r)]
    return [(r, b) for r, b in keys if b is not None and r["status"] == "ok"]


def table(now: list[Row], base: list[Row], revision: str) -> Table:
    """Each row, here and there; what differs by more than both spreads and a tenth is marked."""
    view = Table(title=f"segops against {revision}", title_justify="left", box=None, pad_edge=False, width=120)
    view.add_column("workload, provider", overflow="fold")
    for heading in ("thr", "there, ms", "here, ms", "times as fast"):
        view.add_column(heading, justify="right", no_wrap=True)
    for row, before in changes(now, base):
        factor = before["median_ms"] / row["median_ms"]
        apart = abs(before["median_ms"] - row["median_ms"]) > max(before["iqr_ms"], row["iqr_ms"])
        mark = ("[red]slower[/]" if factor < 1 else "[green]faster[/]") if apart and abs(factor - 1) > 0.1 else ""
        cells = (milliseconds(before["median_ms"]), milliseconds(row["median_ms"]), f"{times(factor)}x {mark:>6s}")
        view.add_row(f"{row['workload']}, {row['provider']}", str(row["threads"] or ""), *cells)
    return view
