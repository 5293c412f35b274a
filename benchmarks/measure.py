"""One row: the gate first, then time, memory (on a CPU see memory.py), and the distance to the floor.

A provider that is wrong, or that refuses or fails, gets no figure.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import memory
import torch
from bench_types import Inputs, Refused, dtype_of, moved
from machine import copy_bandwidth, matrix_rate
from plan import Row, preferring
from registry import SWEEPS, Workload, error, tensors
from torch import Tensor
from torch.utils import _pytree as pytree

Call = Callable[[], Any]
MOST_ROUNDS = {"cpu": 100, "cuda": 300}
MOST_COPIES = 16
SHORT = 0.4  # seconds of a round


@dataclass(frozen=True)
class Effort:
    """Seconds of rounds for each row, of which there is one at the least. A gate's call that took ``enough`` is itself
    the only round, on a CPU and of a provider that does not compile."""

    budget: float = 1.0
    enough: float = 2.0


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads in torch, and in what reads OMP_NUM_THREADS at each call; 0 changes nothing."""
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    if count:
        torch.set_num_threads(count)
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop("OMP_NUM_THREADS") if variable is None else os.environ.update(OMP_NUM_THREADS=variable)


@functools.lru_cache(maxsize=1)
def inputs_of(workload: Workload, device: str) -> tuple[Inputs, list[Tensor]]:
    """A workload's inputs, and the answer in float64."""
    inputs = moved(workload.make(), device)
    return inputs, [x.detach() for x in tensors(workload.oracle(inputs))]


def nbytes(values: Any) -> int:
    return sum(x.numel() * x.element_size() for x in pytree.tree_leaves(values) if isinstance(x, Tensor))


def seconds_on_cpu(run: Call, effort: Effort) -> list[float]:
    """Each round's seconds, until the budget is spent; of what is short at least three, as one may be disturbed."""
    times: list[float] = []
    gc.disable()
    try:
        while len(times) < MOST_ROUNDS["cpu"] and (
            not times or sum(times) + times[-1] < effort.budget or (len(times) < 3 and times[-1] < SHORT)
        ):
            start = time.perf_counter()
            result = run()
            times.append(time.perf_counter() - start)
            del result
    finally:
        gc.enable()
    return times


def rotation(row: Row, inputs: Inputs) -> list[Call]:
    """Calls on copies of the inputs, together larger than twice the second cache (or as many as is sensible)."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    copies = min(MOST_COPIES, 1 + math.ceil(2 * cache / max(nbytes(inputs), 1)))
    return [row.provider.prepare(clones(inputs)) for _ in range(copies)]


def clones(inputs: Inputs) -> Inputs:
    """Copies in memory of their own, with the same strides, gradients wanted where they were."""

    def clone(x: Any) -> Any:
        return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    return pytree.tree_map(clone, inputs)


def seconds_on_cuda(calls: list[Call], effort: Effort) -> list[float]:
    """Each round's seconds between two events of the device. Rounds follow each other without waiting for the host."""

    def rounds(count: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for i, (start, end) in enumerate(events):
            start.record()
            calls[i % len(calls)]()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    once = statistics.median(rounds(3))
    return rounds(min(MOST_ROUNDS["cuda"], max(3, int(effort.budget / max(once, 1e-6)))))


def seconds(row: Row, inputs: Inputs, run: Call, first: float, effort: Effort) -> list[float]:
    if row.device == "cuda":
        return seconds_on_cuda(rotation(row, inputs), effort)
    if first > effort.enough and not row.provider.compiles:
        return [first]
    return seconds_on_cpu(run, effort)


def floor(workload: Workload, inputs: Inputs, device: str, count: int) -> dict[str, Any]:
    """What has to be moved and computed, and how long that takes at the rates of a plain copy and a plain product."""
    bytes_moved = workload.bytes_moved(inputs)
    seconds = bytes_moved / copy_bandwidth(device, count)
    facts: dict[str, Any] = {"bytes": bytes_moved, "floor_by": "memory"}
    if workload.operations is not None:
        facts["operations"] = workload.operations(inputs)
        dtype = dtype_of(inputs)
        tf32 = workload.tf32 and device == "cuda" and torch.backends.cudnn.allow_tf32 and dtype == torch.float32
        facts["rate"] = "tf32" if tf32 else str(dtype).removeprefix("torch.")
        rate = matrix_rate(device, count, facts["rate"])
        if facts["operations"] / rate > seconds:
            seconds, facts["floor_by"] = facts["operations"] / rate, "matrix rate"
    return {**facts, "floor_ms": 1e3 * seconds}


def gate(row: Row, inputs: Inputs, expected: list[Tensor]) -> tuple[Call, float, dict[str, Any]]:
    """The call that is measured, its first seconds, and how far its result is from float64."""
    if row.provider.compiles:
        torch.compiler.reset()  # after eight shapes of one function torch would go on without compiling
    run = row.provider.prepare(inputs)
    start = time.perf_counter()
    result = run()
    first = time.perf_counter() - start
    off = error(row.workload.comparable(inputs, result), expected)
    allowed = row.provider.allowed(inputs)
    facts = {
        "error": off if math.isfinite(off) else str(off),  # JSON has no infinity
        "tolerance": allowed,
        "status": "ok" if off <= allowed else "wrong",
        "results_mib": sum(nbytes(torch.as_tensor(x)) for x in tensors(result)) / memory.MIB,
    }
    return run, first, facts


def figures(row: Row, inputs: Inputs, expected: list[Tensor], effort: Effort) -> dict[str, Any]:
    """The gate's facts; of a correct provider also time, spread, and the share of the floor in the time."""
    run, first, facts = gate(row, inputs, expected)
    if facts["status"] != "ok":
        return facts
    times = seconds(row, inputs, run, first, effort)
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [0.0, 0.0, 0.0]
    facts |= {
        "median_ms": 1e3 * statistics.median(times),
        "iqr_ms": 1e3 * (quartiles[2] - quartiles[0]),
        "rounds": len(times),
        "inputs_mib": nbytes(inputs) / memory.MIB,
        **floor(row.workload, inputs, row.device, row.threads),
    }
    if row.device == "cuda":
        facts["peak_mib"] = memory.peak_on_cuda(run) / memory.MIB
    return {**facts, "share_of_floor": facts["floor_ms"] / facts["median_ms"]}


def measure(row: Row, effort: Effort) -> dict[str, Any]:
    """A row of the JSON. What a provider raises is noted, and the next one's turn comes."""
    w = row.workload
    facts = {"op": w.op, "workload": str(w), "provider": row.name, "threads": row.threads}
    facts |= {"size": w.size, "sweep": w in SWEEPS}
    try:
        inputs, expected = inputs_of(w, row.device)
        with threads(row.threads), preferring(row.backend):
            return {**facts, **figures(row, inputs, expected, effort)}
    except Refused as e:
        return {**facts, "status": "refused", "reason": str(e)[:300]}
    except Exception as e:  # of any provider, torch.compile's among them
        text = " ".join(str(e).split())
        return {**facts, "status": "failed", "reason": f"{type(e).__name__}: {text[:300]}"}
