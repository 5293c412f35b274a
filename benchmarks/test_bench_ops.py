"""pytest-benchmark over the registry: a group for each workload and number of threads, the provider as parameter.

The rows are those of ``python -m segops bench`` on a CPU and on a CUDA device where there is one. A
provider is checked against float64 before it is timed: a wrong one fails and has no figure.
"""

from __future__ import annotations

import measure
import memory
import plan
import pytest
import torch
from bench_types import Refused
from machine import clock, facts

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
ROWS = [row for device in DEVICES for row in plan.rows(device)]


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_bench(benchmark, row: plan.Row):
    inputs, expected = measure.inputs_of(row.workload, row.device)
    with measure.threads(row.threads), plan.preferring(row.backend):
        try:
            run, _, gated = measure.gate(row, inputs, expected)
        except Refused as e:
            pytest.skip(f"{row.name} refuses: {e}")
        assert gated["status"] == "ok", f"{row.name} is wrong by {gated['error']} on {row.workload}"
        place = "gpu" if row.device == "cuda" else f"{row.threads} thread{'s' * (row.threads > 1)}"
        benchmark.group = f"{row.workload}, {place}"
        benchmark.extra_info.update(workload=str(row.workload), provider=row.name, threads=row.threads, **gated)
        benchmark(run)
        if benchmark.enabled:
            benchmark.extra_info.update(facts(row.device), peak_mib=peak(row, run))
            floor = measure.floor(row.workload, inputs, row.device, row.threads)
            benchmark.extra_info["share_of_floor"] = floor["floor_ms"] / (1e3 * benchmark.stats.stats.median)


def peak(row: plan.Row, run) -> float | None:
    on_cuda = row.device == "cuda"
    found = memory.peak_on_cuda(run) if on_cuda else memory.peak_on_cpu(str(row.workload), row.name, row.threads)
    return None if found is None else found / memory.MIB
