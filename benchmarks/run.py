"""The comparison: every row of the plan through the gate, timed, and reported. ``python -m segops bench`` calls it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import machine
import measure
import memory
import plan
import table
import torch
from registry import SWEEPS
from report import is_ours, listed, peer_of
from rich.console import Console

METHOD = {
    "cpu": "Each provider is held against float64 first; wrong ones get no figure. Then calls for 0.3 seconds (with "
    "--quick 0.2), one at least; a first call of more than 2 seconds is the only one, unless it compiled. Median, "
    "interquartile range. Memory: the second call in a process of its own (the first, if that takes more than 0.5 "
    "seconds and 512 MiB), above its inputs, results included; of segops' fastest row and its peer, not of whole "
    "models.",
    "cuda": "Each provider is held against float64 first; wrong ones get no figure. Then time between two events of "
    "the device around each call, on copies of the inputs in turn that are together larger than the second cache, "
    "without waiting for the host between calls. Median, interquartile range. Memory by torch's allocator, above the "
    "inputs, results included.",
}
EFFORT = {"full": measure.Effort(0.3), "quick": measure.Effort(0.2), "gpu": measure.Effort(0.2)}
MINUTES = {"full": 13.5, "quick": 2.5}  # a workload that was started then is ended


def device_of(name: str | None) -> str:
    """cpu, cuda, or what there is."""
    if name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def ops_of(op: str | None) -> list[str]:
    """The operators that are asked for: all, or names with commas between them."""
    known = plan.operators()
    wanted = [name.strip() for name in op.split(",")] if op else known
    for name in wanted:
        if name not in known:
            raise ValueError(f"--op: there is no benchmark of {name!r}; there are {', '.join(sorted(known))}")
    return wanted


def measured(rows: list[plan.Row], kind: str) -> Iterator[dict[str, Any]]:
    """The rows of one workload, with memory."""
    effort = EFFORT["gpu" if rows[0].device == "cuda" else kind]
    done = [measure.measure(row, effort) for row in rows]
    weighed = ours_and_its_peer(done)
    for row, facts in zip(rows, done):
        if row.device == "cpu" and row.workload.weighed and any(facts is other for other in weighed):
            peak = memory.peak_on_cpu(str(row.workload), row.provider.name, row.threads)
            facts["peak_mib"] = None if peak is None else peak / memory.MIB
        yield facts


def ours_and_its_peer(done: list[dict]) -> list[dict | None]:
    """segops' fastest row and whom it is compared with."""
    ours = [r for r in done if is_ours(r) and r["status"] == "ok"]
    fastest = min(ours, key=lambda r: r["median_ms"], default=None)
    return [] if fastest is None else [fastest, peer_of(fastest, done)]


def ceilings(rows: list[dict], device: str) -> list[dict[str, Any]]:
    """Copy bandwidth and matrix rates that floors were computed with."""
    found = []
    for threads in sorted({r["threads"] for r in rows}):
        with measure.threads(threads):
            kinds = {r["rate"] for r in rows if r["threads"] == threads and "rate" in r}
            found.append(
                {
                    "threads": threads,
                    "copy_gb_s": machine.copy_bandwidth(device, threads) / 1e9,
                    "matrix_gflop_s": {k: machine.matrix_rate(device, threads, k) / 1e9 for k in sorted(kinds)},
                }
            )
    return found


def bench(
    op: str | None = None,
    device: str | None = None,
    quick: bool = False,
    threads: int | None = None,
    minutes: float | None = None,
    ours: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure and print; ``ours`` leaves the peers out. Returns what goes into the JSON."""
    ops, device = ops_of(op), device_of(device)
    rows = plan.rows(device, threads, ops, quick, sweeps=not ours)
    rows = [r for r in rows if not ours or r.provider.name.startswith("segops")]
    kind = "quick" if quick else "full"
    deadline = time.monotonic() + 60 * (MINUTES[kind] if minutes is None else minutes)
    result: dict[str, Any] = {**machine.facts(device), "method": METHOD[device], "rows": []}
    result |= {"quick": quick, "missing": {} if ours else plan.missing(ops), "unmeasured": []}
    for name, group in groupby(rows, key=lambda r: (r.workload.op, r.workload in SWEEPS, r.workload.late)):
        found: list[dict] = []
        for workload, same in groupby(group, key=lambda r: str(r.workload)):
            if time.monotonic() < deadline:  # a workload whole or not at all: a ratio refers to all of its peers
                found += measured(list(same), kind)
            else:
                result["unmeasured"].append(workload)
        if quick:  # a sweep's smallest stands for its operator
            found = [{**r, "sweep": False} for r in found]
        result["rows"] += found
        if console and (rows_of := listed(found)):
            console.print(table.operator(name[0], rows_of))
    result["ceilings"] = ceilings(result["rows"], device)
    return result


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":  # run.py FILE OPTIONS: what base.py starts with another revision's segops
    write(bench(**json.loads(sys.argv[2])), Path(sys.argv[1]))
