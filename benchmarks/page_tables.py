"""Tables of results in Markdown, for page.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from explained import explanation
from report import (
    Row,
    best,
    by_op,
    error,
    geometric_mean,
    is_ours,
    listed,
    lost,
    milliseconds,
    peer_of,
    ratio,
    times,
    torch_of,
    where,
)


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def workload(row: Row) -> str:
    """Without the operator's name, for a table of one operator."""
    name = f"`{row['workload'].partition('-')[2]}`"
    return f"{name}, {row['dtype']}" if row.get("dtype") else name


def threads(row: Row) -> str:
    return str(row["threads"] or "")


def memory(row: Row | None) -> str:
    return f"{row['peak_mib']:.0f}" if row and row.get("peak_mib") is not None else ""


def against(row: Row, rows: list[Row]) -> list[str]:
    """The fastest correct peer's name, time, and how many times as fast segops is."""
    peer, factor = peer_of(row, rows), ratio(row, rows)
    if peer is None or factor is None:
        return ["none", "", ""]
    factor_text = f"**{times(factor)}**" if factor < 1 else times(factor)
    return [f"`{peer['provider']}`", milliseconds(peer["median_ms"]), factor_text]


def operator_table(rows: list[Row]) -> str:
    """Of one operator: each correct row of segops against the fastest correct peer."""
    headings = ["workload", "threads", "", "ms", "fastest peer", "ms", "times", "MiB", "peer's", "results'"]
    lines = [
        [
            workload(r),
            threads(r),
            f"`{r['provider']}`",
            milliseconds(r["median_ms"]),
            *against(r, rows),
            memory(r),
            memory(peer_of(r, rows)),
            f"{r['results_mib']:.0f}" if "results_mib" in r else "",
        ]
        for r in rows
        if is_ours(r) and r["status"] == "ok"
    ]
    filled = [i for i in range(len(headings)) if i < 7 or any(line[i] for line in lines)]
    filled = [i for i in filled if i != 1 or any(line[i] for line in lines)]
    return table([headings[i] for i in filled], ([line[i] for i in filled] for line in lines))


def newest(found: dict[str, dict], op: str, gpu: bool) -> tuple[str, list[Row]] | None:
    """The newest file of that kind of device which has rows of an operator, and these."""
    for name, result in found.items():
        rows = by_op(listed(result["rows"])).get(op)
        if rows and bool(result.get("gpu")) == gpu:
            return name, rows
    return None


def source(name: str, result: dict[str, Any], depth: str) -> str:
    path = f"benchmarks/results/{name}"
    link = f"`{path}`" if depth else f"[{name}]({path})"  # the site holds docs/ only
    return f"{where(result)}, torch {torch_of(result)}, {result['date']} ({link})"


def operators(ops: list[str], found: dict[str, dict], depth: str) -> str:
    """The block of an operator's page: a table for each operator and kind of device."""
    parts = []
    for gpu in (False, True):
        files = {op: newest(found, op, gpu) for op in ops}
        for op, entry in files.items():
            if entry is None:
                continue
            name, rows = entry
            heading = f"`{op}`, " if len(ops) > 1 else ""
            parts.append(f"{heading}{source(name, found[name], depth)}:\n\n{operator_table(rows)}")
        if not any(files.values()):
            parts.append(f"No {'GPU' if gpu else 'CPU'} figure has been measured yet.")
    return "\n\n".join(parts)


def factors(entry: tuple[str, list[Row]] | None) -> str:
    """The geometric mean of an operator's ratios, and in brackets the least of them."""
    if entry is None:
        return ""
    values = [f for r in best(entry[1]) if (f := ratio(r, entry[1]))]
    if not values:
        return "no peer"
    mean, least = times(geometric_mean(values)), times(min(values))
    return mean if len(values) == 1 else f"{mean} ({least})"


def summary(found: dict[str, dict], depth: str) -> str:
    """A line for each operator: how many times as fast it is as its fastest correct peer, on a CPU and on a GPU."""
    ops = sorted({r["op"] for result in found.values() for r in result["rows"]})
    lines = []
    for op in ops:
        cpu, gpu = newest(found, op, False), newest(found, op, True)
        peers = [p for e in (cpu, gpu) if e for r in best(e[1]) if (p := peer_of(r, e[1]))]
        names = ", ".join(dict.fromkeys(f"`{p['provider']}`" for p in peers))
        lines.append([f"`{op}`", factors(cpu), factors(gpu), names])
    text = table(["operator", "CPU", "GPU", "fastest peers"], lines)
    sources = {name for op in ops for gpu in (False, True) if (entry := newest(found, op, gpu)) for name in entry[:1]}
    measured = "\n".join(f"- {source(name, result, depth)}" for name, result in found.items() if name in sources)
    return f"{text}\n\nMeasured on:\n\n{measured}"


def losses(found: dict[str, dict]) -> str:
    """Every row that a peer wins, and why."""
    lines, reasons = [], {}
    for name, result in found.items():
        rows = listed(result["rows"])
        for r in lost(rows):
            reasons[f"`{r['op']}`, {'GPU' if result.get('gpu') else 'CPU'}"] = explanation(result, r["op"])
            row = f"`{r['op']}`, {workload(r)}"
            lines.append([f"`{name}`", row, milliseconds(r["median_ms"]), *against(r, rows)])
    if not lines:
        return "There is none in the results below."
    why = "\n".join(f"- {key}: {reason}." for key, reason in reasons.items())
    return table(["file", "row", "ms", "fastest peer", "ms", "times"], lines) + f"\n\nWhy:\n\n{why}"


def every_row(rows: list[Row]) -> str:
    """All providers of an operator, the wrong ones too."""
    lines = []
    for r in rows:
        name = [workload(r), threads(r), f"`{r['provider']}`"]
        if r["status"] != "ok":
            reason = f"wrong by {error(r)}" if r["status"] == "wrong" else f"{r['status']}: {r['reason'][:80]}"
            lines.append([*name, reason, "", "", "", "", ""])
            continue
        share = f"{100 * r['share_of_floor']:.0f} %" if "share_of_floor" in r else ""
        spread = f"{milliseconds(r['iqr_ms'])}" if "iqr_ms" in r else ""
        results_mib = f"{r['results_mib']:.0f}" if "results_mib" in r else ""
        factor = against(r, rows)[2] if is_ours(r) else ""
        lines.append([*name, milliseconds(r["median_ms"]), spread, share, factor, memory(r), results_mib])
    headings = ["workload", "threads", "provider", "ms", "± ms", "of the floor", "times the peer", "MiB", "results'"]
    return table(headings, lines)


def file_section(name: str, result: dict[str, Any]) -> str:
    """A result file: what it was measured on and how, how to measure it again, and all of its rows."""
    commit, ceilings = result.get("commit"), result.get("ceilings", [])
    again = 'make bench ARGS="--op OPERATOR"' if ceilings else "make bench ARGS='-k WORKLOAD'"
    at = f"`git checkout {commit[:12]}` and " if commit else ""
    parts = [f"## {name.removesuffix('.json')}", f"{source(name, result, '../')}. {result['method']}"]
    parts.append(f"Again, on such a machine: {at}`{again}`.")
    for c in ceilings:
        rates = ", ".join(f"{kind} products {rate:.0f} GFLOP/s" for kind, rate in c["matrix_gflop_s"].items())
        count = f"{c['threads']} threads: " if c["threads"] else ""
        parts.append(f"Ceilings, {count}copies {c['copy_gb_s']:.1f} GB/s{', ' if rates else ''}{rates}.")
    if result.get("missing"):
        parts.append(f"Peers that were not installed: {', '.join(result['missing'])}.")
    if result.get("unmeasured"):
        parts.append(f"Not measured for want of time: {', '.join(f'`{name}`' for name in result['unmeasured'])}.")
    for op, rows in by_op(listed(result["rows"])).items():
        parts.append(f"### {op}\n\n{every_row(rows)}")
    return "\n\n".join(parts)
