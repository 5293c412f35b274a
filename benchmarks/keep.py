"""python benchmarks/keep.py build/benchmark.json benchmarks/results/NAME.json

Keeps of a run what others can compare with, and prints it as the table of the docs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def kept(report: dict) -> dict:
    """Machine, commit and, for each row, the median with its spread and what the benchmark noted."""
    machine = report["machine_info"]
    rows = [
        {
            **b["extra_info"],
            "median_ms": 1e3 * b["stats"]["median"],
            "iqr_ms": 1e3 * b["stats"]["iqr"],
            "rounds": b["stats"]["rounds"],
        }
        for b in report["benchmarks"]
    ]
    return {
        "method": "pytest-benchmark, one run; median and interquartile range; ratios to the peer of the same run",
        "date": report["datetime"][:10],
        "commit": report["commit_info"]["id"],
        "cpu": machine["cpu"].get("brand_raw"),
        "cores": machine["cpu"].get("count"),
        "gpu": next((b["extra_info"]["device"] for b in report["benchmarks"] if "device" in b["extra_info"]), None),
        "python": machine["python_version"],
        "rows": rows,
    }


def ratio(row: dict, rows: list[dict]) -> str:
    peers = [r for r in rows if r["workload"] == row["workload"] and not r["provider"].startswith("segops")]
    peer = next((p for p in peers if p["threads"] == row["threads"]), peers[0] if peers else None)
    return f"{peer['median_ms'] / row['median_ms']:.1f}" if peer else ""


def table(result: dict) -> str:
    lines = [
        "| workload | provider | threads | median, ms | times the peer | of copy bandwidth | MiB on top |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda r: (r["workload"], r["provider"], r["threads"])):
        memory = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        lines.append(
            f"| {row['workload']} | {row['provider']} | {row['threads']} | {row['median_ms']:.1f} | "
            f"{ratio(row, result['rows'])} | {100 * row['share_of_copy_bandwidth']:.1f} % | {memory} |"
        )
    return "\n".join(lines)


def main(source: str, target: str) -> None:
    result = kept(json.loads(Path(source).read_text()))
    Path(target).write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
