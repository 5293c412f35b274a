"""python benchmarks/host_time.py [OP,OP...]: the host's share of a call of a GPU operator, measured without a GPU.

Small problems on a GPU take as long as the host needs to launch them. Here Triton compiles for an H100, and a stub in
place of its driver launches nothing. What is left of a call is the dispatcher, Python, and torch's own operators on a
few elements; what the driver would take, a few microseconds a launch, is not in it. Beside it stands the same for the
plain PyTorch reference.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import segops
from segops._registry import OPERATORS
from segops.testing.cases import CASES, Case
from segops.testing.stub_driver import StubDriver, calls, install


def microseconds(call: Callable[[], object], calls: int = 30, rounds: int = 8) -> float:
    """Of this thread's processor time, in the best of a few rounds; the first calls compile and fill caches."""
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            call()
        times.append((time.thread_time() - start) / calls)
    return min(times) * 1e6


def row(case: Case, driver: StubDriver) -> list[str]:
    """Launches and microseconds of one operator; of gradients where it has any."""
    cells = [case.op]
    for call in calls(case):
        try:
            ours = microseconds(call)
            driver.launches = 0
            call()
            launches = driver.launches
            with segops.backend("reference"):
                plain = microseconds(call)
            cells += [str(launches), f"{ours:.0f}", f"{plain:.0f}"]
        except Exception as error:  # a kernel's result is read on the way, and here there is none
            cells += ["", f"({type(error).__name__})", ""]
    return cells


def main() -> None:
    torch.set_num_threads(1)
    driver = install()
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else list(OPERATORS)
    table = Table("operator", *("launches", "us", "reference us") * 2)
    table.caption = "forward, then with gradients"
    for name in names:
        table.add_row(*row(next(case for case in CASES if case.op == name), driver))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
