"""Peak memory of one call: what it takes above its inputs, results included.

On a CPU each row is measured in a process of its own, so that nothing which another row left behind is taken again
without being counted. ``python memory.py`` is the process that they are forked from, since importing takes seconds;
it answers each line WORKLOAD PROVIDER THREADS with a number of bytes, or ``nan``. It computes nothing itself: threads
do not survive a fork.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
LONGEST = 200  # seconds, after which a row's memory is given up
LONG, MUCH = 0.5, 512 * MIB  # seconds and bytes of a call that need not be repeated
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def measurable() -> bool:
    """Linux with glibc, which can be told to give back at once what is freed."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident(key: str) -> int:
    """Bytes: VmRSS, what the process holds now, or VmHWM, the most that it held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status).group(1)) * 1024


def peak_of_process(run: Callable[[], Any], compiles: bool = False) -> int:
    """Bytes that the second call takes, for which libraries are loaded and threads started. The first, where it is long
    and takes so much that these, some 30 MiB, are little beside it."""
    start = time.perf_counter()
    peak = peak_of_call(run)
    enough = peak > MUCH and time.perf_counter() - start > LONG and not compiles
    return peak if enough else peak_of_call(run)


def peak_of_call(run: Callable[[], Any]) -> int:
    """Bytes that a call takes above what is held before it."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    result = run()
    peak = resident("VmHWM") - before
    del result
    return max(peak, 0)


def peak_on_cuda(run: Callable[[], Any]) -> int:
    """The same by the count of torch's allocator, in this process."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


@functools.cache
def server() -> subprocess.Popen:
    """The process that the others are forked from; it ends with this one."""
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def peak_on_cpu(workload: str, provider: str, threads: int) -> int | None:
    """Bytes; None where that can't be measured."""
    if not measurable():
        return None
    process = server()
    try:
        print(workload, provider, threads, file=process.stdin, flush=True)
    except OSError:  # it has ended
        return None
    answer = float(process.stdout.readline() or "nan")
    return None if answer != answer else int(answer)


def answer(workload_name: str, provider_name: str, threads: int) -> int:
    """In a forked process: of a row of the registry."""
    from registry import PROVIDERS, SWEEPS, WORKLOADS

    for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(parameter, 65536)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    workload = next(w for w in (*WORKLOADS, *SWEEPS) if str(w) == workload_name)
    provider = next(p for p in PROVIDERS if p.op == workload.op and p.name == provider_name)
    return peak_of_process(provider.prepare(workload.make()), provider.compiles)


def serve() -> None:
    import registry  # noqa: F401  once, for all

    # What a provider prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        workload, provider, threads = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(LONGEST)
            try:
                print(answer(workload, provider, int(threads)), file=answers, flush=True)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1] != 0:
            print("nan", file=answers, flush=True)


if __name__ == "__main__":
    serve()
