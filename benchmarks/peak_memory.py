"""python peak_memory.py WORKLOAD PROVIDER: MiB that one call takes above its inputs, results included, on Linux."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from registry import PROVIDERS, WORKLOADS


def resident(key: str) -> float:
    """VmRSS, what the process holds now, or VmHWM, the most that it held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status).group(1)) / 1024


def main(workload_name: str, provider_name: str) -> None:
    workload = next(w for w in WORKLOADS if str(w) == workload_name)
    provider = next(p for p in PROVIDERS if p.op == workload.op and p.name == provider_name)
    run = provider.prepare(workload.make())
    run()  # so that libraries are loaded and threads started
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    result = run()
    print(resident("VmHWM") - before)
    del result


if __name__ == "__main__":
    main(*sys.argv[1:])
