"""After the table: each provider's speed as a ratio to the peer's best in the same run."""

from __future__ import annotations

import torch

collect_ignore = [] if torch.cuda.is_available() else ["test_bench_gpu.py"]


def pytest_collection_modifyitems(config, items):
    """A run that measures nothing shows that the rows work: of each operator segops on its first workload."""
    if not config.getoption("benchmark_disable"):
        return
    rows = {}
    for item in items:
        row = item.callspec.params if hasattr(item, "callspec") and "provider" in item.callspec.params else None
        if row is None:
            rows[item] = item
        elif row["provider"].name.startswith("segops"):
            rows.setdefault((row["workload"].op, row["provider"].name), item)
    kept = set(rows.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def where(info: dict) -> str:
    return "gpu" if "device" in info else f"{info['threads']} thr"


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    done = [b for b in getattr(session, "benchmarks", []) if b.stats and b.extra_info.get("provider")]
    if not done:
        return
    terminalreporter.section("ratios to the peer in this run")
    by_workload: dict[str, list] = {}
    for b in done:
        by_workload.setdefault(b.extra_info["workload"], []).append(b)
    for workload, rows in by_workload.items():
        peers = [b for b in rows if not b.extra_info["provider"].startswith("segops")]
        for b in sorted(rows, key=lambda b: (b.extra_info["provider"], b.extra_info["threads"])):
            info = b.extra_info
            # A peer with as many threads where there is one, else the one thread it has.
            peer = next((p for p in peers if p.extra_info["threads"] == info["threads"]), peers[0] if peers else None)
            ratio = f"{peer.stats.median / b.stats.median:6.2f}x {peer.extra_info['provider']}" if peer else ""
            memory = f"{info['peak_mib']:7.0f} MiB" if "peak_mib" in info else ""
            terminalreporter.write_line(
                f"{workload:44s} {info['provider']:14s} {where(info):6s} {b.stats.median * 1e3:9.2f} ms "
                f"{100 * info.get('share_of_copy_bandwidth', 0):5.1f} % of copy bandwidth {memory:12s} {ratio}"
            )
