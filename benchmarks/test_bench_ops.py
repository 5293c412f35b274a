"""pytest-benchmark over the registry: a group for each workload and number of threads, the provider as parameter.

A provider is checked against float64 before it is timed: a wrong one fails and has no figure.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
import torch
from registry import PROVIDERS, WORKLOADS, Inputs, Provider, Workload, error, tensors

ROWS = [
    (w, p, t) for w in WORKLOADS for p in PROVIDERS if p.op == w.op for t in w.threads if t <= torch.get_num_threads()
]
ROWS = [(w, p, t) for w, p, t in ROWS if not p.missing() and not (p.single and t > 1)]


@functools.lru_cache(maxsize=1)
def inputs_of(workload: Workload) -> tuple[Inputs, list[torch.Tensor]]:
    inputs = workload.make()
    return inputs, [x.detach() for x in tensors(workload.oracle(inputs))]


@functools.cache
def copy_bandwidth(threads: int) -> float:
    """Bytes read and written a second by a plain copy, larger than any cache, the best of several."""
    import time

    source = torch.rand(1 << 26)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best


def peak_memory(workload: Workload, provider: Provider) -> float:
    """MiB that one call takes on top of its inputs, in a process of its own."""
    if sys.platform != "linux":
        return float("nan")
    command = [sys.executable, __file__.replace("test_bench_ops", "peak_memory"), str(workload), provider.name]
    # What is freed goes back to the system at once, and is counted when it is taken again.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("workload", "provider", "threads"), ROWS, ids=lambda x: x.name if isinstance(x, Provider) else str(x)
)
def test_bench(benchmark, monkeypatch, workload, provider, threads):
    inputs, expected = inputs_of(workload)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))  # which the NumPy front end reads at each call
    try:
        run = provider.prepare(inputs)
        off = error(workload.comparable(inputs, run()), expected)
        assert off <= provider.tolerance, f"{provider.name} is wrong by {off:.2g} on {workload}"
        benchmark.group = f"{workload}, {threads} thread{'s' * (threads > 1)}"
        benchmark.extra_info.update(
            workload=str(workload), provider=provider.name, threads=threads, torch=torch.__version__, error=off
        )
        benchmark(run)
        if benchmark.enabled:
            bandwidth = workload.bytes_moved(inputs) / benchmark.stats.stats.median
            benchmark.extra_info["share_of_copy_bandwidth"] = bandwidth / copy_bandwidth(threads)
            if threads == workload.threads[0]:
                benchmark.extra_info["peak_mib"] = peak_memory(workload, provider)
    finally:
        torch.set_num_threads(before)
