"""Results, of this run or from a file: who is whose peer, and by how much."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """A result file. Those of before the gate's verdict was kept have correct rows only, and fewer fields."""
    result = json.loads(path.read_text())
    for row in result["rows"]:
        row.setdefault("op", row["workload"].partition("-")[0])
        row.setdefault("status", "ok")
        row["threads"] = row.get("threads") or 0
    return result


def is_ours(row: Row) -> bool:
    return row["provider"].startswith("segops")


def same_work(a: Row, b: Row) -> bool:
    return a["workload"] == b["workload"] and a.get("dtype") == b.get("dtype")


def peer_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The fastest correct peer, with as many threads where there is one, else with those that it has."""
    peers = [r for r in rows if same_work(r, row) and not is_ours(r) and r["status"] == "ok"]
    alike = [r for r in peers if r["threads"] == row["threads"]]
    return min(alike or peers, key=lambda r: r["median_ms"], default=None)


def ratio(row: Row, rows: Iterable[Row]) -> float | None:
    """How many times as fast a correct row of segops is as its peer."""
    if not is_ours(row) or row["status"] != "ok":
        return None
    peer = peer_of(row, rows)
    return peer["median_ms"] / row["median_ms"] if peer else None


def best(rows: Iterable[Row]) -> list[Row]:
    """Of each workload segops' fastest correct row, which is the one that wins or loses."""
    found: dict[tuple, Row] = {}
    for row in rows:
        if is_ours(row) and row["status"] == "ok":
            key = row["workload"], row.get("dtype"), row["threads"]
            if key not in found or row["median_ms"] < found[key]["median_ms"]:
                found[key] = row
    return list(found.values())


def lost(rows: list[Row]) -> list[Row]:
    """The best rows of segops that a peer beats."""
    return [r for r in best(rows) if (ratio(r, rows) or 1) < 1]


def listed(rows: Iterable[Row]) -> list[Row]:
    """Without those of sweeps, which are drawn."""
    return [r for r in rows if not r.get("sweep")]


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def by_op(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["op"], []).append(row)
    return groups


def where(result: dict[str, Any]) -> str:
    """The machine, for people."""
    if result.get("gpu"):
        return result["gpu"]
    isa = f", {result['isa']}" if result.get("isa") else ""
    return f"{result['cpu']}, {result['cores']} cores{isa}"


def torch_of(result: dict[str, Any]) -> str:
    return result.get("torch") or result["rows"][0].get("torch", "")


def error(row: Row) -> str:
    """How far a row is from float64."""
    return f"{float(row['error']):.1e}"


def milliseconds(value: float) -> str:
    """Three digits or so: 0.12, 3.4, 56, 7890."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def times(value: float) -> str:
    """A ratio: 0.87, 3.4, 42. It is cut, not rounded, below one, so that what loses does not read as 1.00."""
    return f"{math.floor(100 * value) / 100:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
