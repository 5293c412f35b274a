"""The rows of the registry on a CUDA device, each provider held against float64 first, as in test_bench_ops.py.

``segops_cuda`` is segops with its CUDA C++ kernels in the place of Triton's, for the operators that have any.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_types import moved
from registry import PROVIDERS, WORKLOADS, Inputs, Provider, Workload, error, tensors

from segops import _backends
from segops._registry import OPERATORS, load_all

load_all()
CUDA_OPERATORS = frozenset(n for n in OPERATORS if _backends.unavailable(n, "cuda", "cuda") is None)


def built_on_cuda(op: str) -> bool:
    return {"dense_crf": "mean_field"}.get(op, op) in CUDA_OPERATORS


ROWS = [(w, p, p.name) for w in WORKLOADS for p in PROVIDERS if p.op == w.op and p.needs is None]
ROWS += [(w, p, "segops_cuda") for w, p, name in ROWS if name == "segops" and built_on_cuda(w.op)]


def synchronized_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@functools.lru_cache(maxsize=1)
def inputs_of(workload: Workload) -> tuple[Inputs, list[torch.Tensor]]:
    inputs = moved(workload.make(), "cuda")
    return inputs, [x.detach() for x in tensors(workload.oracle(inputs))]


@functools.cache
def copy_bandwidth() -> float:
    """Bytes read and written a second by a plain copy of a gigabyte, the best of several."""
    source = torch.rand(1 << 28, device="cuda")
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        start = synchronized_clock()
        target.copy_(source)
        best = min(best, synchronized_clock() - start)
    return 2 * source.numel() * 4 / best


def peak_memory(run: Callable[[], Any]) -> float:
    """MiB that one call takes on top of its inputs, its results included."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    peak = torch.cuda.max_memory_allocated()
    del result
    return (peak - before) / 2**20


@pytest.mark.benchmark(timer=synchronized_clock)
@pytest.mark.parametrize(("workload", "provider", "name"), ROWS, ids=[f"{w}-{name}" for w, _, name in ROWS])
def test_bench(benchmark, monkeypatch, workload: Workload, provider: Provider, name: str):
    inputs, expected = inputs_of(workload)
    if name == "segops_cuda":
        monkeypatch.setattr(_backends, "PROVEN_ON_DEVICE", CUDA_OPERATORS)
    run = provider.prepare(inputs)
    off = error(workload.comparable(inputs, run()), expected)
    assert off <= provider.tolerance, f"{name} is wrong by {off:.2g} on {workload}"
    device = torch.cuda.get_device_name()
    benchmark.group = f"{workload}, {device}"
    benchmark.extra_info.update(
        workload=str(workload), provider=name, device=device, threads=0, torch=torch.__version__, error=off
    )
    benchmark.extra_info["peak_mib"] = peak_memory(run)
    benchmark(run)
    if benchmark.enabled:
        bandwidth = workload.bytes_moved(inputs) / benchmark.stats.stats.median
        benchmark.extra_info["share_of_copy_bandwidth"] = bandwidth / copy_bandwidth()
