"""After the table: each provider's speed as a ratio to the fastest peer in the same run."""

from __future__ import annotations

import plan
from report import peer_of, ratio, times


def pytest_collection_modifyitems(config, items):
    """A run that measures nothing shows that the rows work: of each operator segops on the workload of --quick."""
    if not config.getoption("benchmark_disable"):
        return
    quick, kept = set(plan.workloads(plan.operators(), quick=True)), {}
    for item in items:
        row = item.callspec.params.get("row") if hasattr(item, "callspec") else None
        if row is None:
            kept[item] = item
        elif row.name.startswith("segops") and row.workload in quick:
            kept.setdefault((row.workload.op, row.name, row.device), item)
    wanted = set(kept.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = [item for item in items if item in wanted]


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    done = [b for b in getattr(session, "benchmarks", []) if b.stats and b.extra_info.get("provider")]
    if not done:
        return
    terminalreporter.section("ratios to the fastest peer in this run")
    rows = [{**b.extra_info, "median_ms": 1e3 * b.stats.median} for b in done]
    for row in sorted(rows, key=lambda r: (r["workload"], r["threads"], r["provider"])):
        alike = [r for r in rows if r["gpu"] == row["gpu"]]
        factor, peer = ratio(row, alike), peer_of(row, alike)
        against = f"{times(factor)}x {peer['provider']}" if factor is not None and peer is not None else ""
        where = "gpu" if row["gpu"] else f"{row['threads']} thr"
        peak = f"{row['peak_mib']:7.0f} MiB" if row.get("peak_mib") is not None else ""
        terminalreporter.write_line(
            f"{row['workload']:44s} {row['provider']:14s} {where:6s} {row['median_ms']:9.2f} ms "
            f"{100 * row['share_of_floor']:5.1f} % of the floor {peak:12s} {against}"
        )
