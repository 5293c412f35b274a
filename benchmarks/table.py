"""The table that a run prints, operator after operator."""

from __future__ import annotations

from typing import Any

from report import Row, best, by_op, error, geometric_mean, listed, lost, milliseconds, peer_of, ratio, times, where
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

WIDTH = 120


def cells(row: Row, rows: list[Row]) -> tuple[str, ...]:
    """A line: provider, threads, time, spread, share of the floor, memory, ratio."""
    name, threads = row["provider"], str(row["threads"] or "")
    if row["status"] == "wrong":
        verdict = f"[bold red]WRONG[/] by {error(row)} (max {row['tolerance']:.0e})"
        return name, threads, "", "", "", "", verdict
    if row["status"] != "ok":
        colour = "dim" if row["status"] == "refused" else "red"
        return name, threads, "", "", "", "", f"[{colour}]{row['status']}[/]: {escape(row.get('reason', ''))[:60]}"
    spread = f"{100 * row['iqr_ms'] / row['median_ms']:.0f} %" if row["rounds"] > 1 else "1 round"
    memory = f"{row['peak_mib']:.0f} ({row['results_mib']:.0f})" if row.get("peak_mib") is not None else ""
    factor, peer = ratio(row, rows), peer_of(row, rows)
    verdict = ""
    if factor is not None and peer is not None:
        colour, mark = ("red", "  LOSES") if factor < 1 else ("green", "")
        verdict = f"[{colour}]{times(factor)}x[/] {peer['provider']}{mark}"
    share = f"{100 * row['share_of_floor']:.0f} %"
    return name, threads, milliseconds(row["median_ms"]), spread, share, memory, verdict


COLUMNS = (("", 30), ("threads", 7), ("ms", 9), ("spread", 8), ("of floor", 9), ("MiB (results)", 14))


def workload(rows: list[Row], heading: bool) -> Table:
    """A workload with its floor, and its providers, the fastest first."""
    known = next((r for r in rows if r["status"] == "ok"), None)
    floor = f"   [dim]floor {milliseconds(known['floor_ms'])} ms by {known['floor_by']}[/]" if known else ""
    title = f"[cyan]{rows[0]['workload'].partition('-')[2]}[/]{floor}"
    table = Table(
        title=title, title_justify="left", title_style="", show_header=heading, box=None, padding=(0, 2, 0, 0)
    )
    for name, width in COLUMNS:
        table.add_column(name, justify="right" if name else "left", overflow="fold", width=width)
    table.add_column("times the fastest peer", overflow="fold", width=31)
    for row in sorted(rows, key=lambda r: (r["threads"], r["status"] != "ok", r.get("median_ms", 0))):
        first, *rest = cells(row, rows)
        table.add_row(f"  {first}", *rest)
    return table


def operator(op: str, rows: list[Row]) -> Group:
    """An operator's workloads."""
    names = dict.fromkeys(r["workload"] for r in rows)
    tables = [workload([r for r in rows if r["workload"] == name], i == 0) for i, name in enumerate(names)]
    return Group(f"\n[bold]{op}[/]", *tables)


def legend() -> str:
    return (
        "of floor: the least time that this machine's copy bandwidth and matrix rate allow, over the median. "
        "MiB: what a call takes above its inputs, and in brackets the results alone."
    )


def summary(console: Console, result: dict[str, Any]) -> None:
    """Ceilings, what is lost, what is missing."""
    rows = listed(result["rows"])
    console.print(f"\n[bold]{where(result)}[/], torch {result['torch']}; {legend()}")
    for ceiling in result["ceilings"]:
        threads = f", {ceiling['threads']} threads" if ceiling["threads"] else ""
        rates = ", ".join(f"{kind} {rate:.0f} GFLOP/s" for kind, rate in ceiling["matrix_gflop_s"].items())
        console.print(f"ceilings{threads}: copies {ceiling['copy_gb_s']:.1f} GB/s; products {rates or 'not needed'}")
    ratios = {op: [f for r in best(group) if (f := ratio(r, group))] for op, group in by_op(rows).items()}
    for op, factors in ratios.items():
        if factors:
            mean, least = times(geometric_mean(factors)), times(min(factors))
            console.print(f"  {op:28s} {mean:>5s}x in the geometric mean of {len(factors)}, {least}x at the least")
    losing = lost(rows)
    console.print(f"segops loses {len(losing)} of {sum(map(len, ratios.values()))}" + (":" if losing else "."))
    for row in losing:
        console.print(f"  {row['workload']}, {row['provider']}: {times(ratio(row, rows) or 0)}x")
    drawn = len(result["rows"]) - len(rows)
    if drawn:
        console.print(f"{drawn} rows of sweeps are in the JSON and the plots.")
    for module, absent in result["missing"].items():
        console.print(f"not installed: {module} ({', '.join(absent)})", soft_wrap=True)
    if result["unmeasured"]:
        console.print(
            f"[yellow]not measured for want of time (--minutes gives more):[/] {', '.join(result['unmeasured'])}",
            soft_wrap=True,
        )
