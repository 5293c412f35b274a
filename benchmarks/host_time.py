"""python benchmarks/host_time.py [OP,OP...]: the host's share of a call of a GPU operator, measured without a GPU.

Small problems on a GPU take as long as the host needs to launch them. Here Triton compiles for an H100, and a stub in
place of its driver launches nothing. What is left of a call is the dispatcher, Python, and torch's own operators on a
few elements; what the driver would take, a few microseconds a launch, is not in it. Beside it stands the same for the
plain PyTorch reference.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget

import segops
from segops import _backends
from segops._registry import OPERATORS, load_all
from segops.testing.cases import CASES, Case


class StubDriver:
    """What Triton asks of a driver: an H100's properties, and launchers that count."""

    launches = 0
    utils = None

    def __init__(self) -> None:
        self.utils = self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *args: object) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        def launch(*args: object) -> None:
            self.launches += 1

        return launch


def microseconds(call: Callable[[], object], calls: int = 30, rounds: int = 8) -> float:
    """Of this thread's processor time, in the best of a few rounds; the first calls compile and fill caches."""
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(calls):
            call()
        times.append((time.thread_time() - start) / calls)
    return min(times) * 1e6


def calls(case: Case) -> tuple[Callable[[], object], Callable[[], object]]:
    """The operator alone, and with its gradients."""
    args = case.args(torch.float32)
    leaves = [x for i in case.gradients for x in (args[i] if isinstance(args[i], list) else [args[i]])]
    operator = getattr(torch.ops.segops, case.op)

    def forward() -> object:
        return operator(*args)

    def both() -> None:
        out = operator(*args)
        first = out if isinstance(out, torch.Tensor) else out[0]
        torch.autograd.grad(first.sum(), leaves, allow_unused=True)

    for leaf in leaves:
        leaf.requires_grad_()
    return forward, both


def row(case: Case, driver: StubDriver) -> list[str]:
    """Launches and microseconds of one operator; of gradients where it has any."""
    cells = [case.op]
    for call in calls(case)[: 2 if case.gradients and OPERATORS[case.op].differentiable else 1]:
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
    load_all()
    warnings.simplefilter("ignore")
    driver = StubDriver()
    triton.runtime.driver.set_active(driver)
    allowed = _backends.unavailable
    _backends.unavailable = lambda name, backend, device, *rest: allowed(name, backend, "cuda", *rest)
    _backends.order = lambda name, device: ("triton", "reference")
    cpu = torch.library.Library("segops", "IMPL")
    for name in OPERATORS:
        cpu.impl(name, lambda *args, name=name: _backends.run(name, "cpu", *args), "CPU")
    aten = torch.library.Library("aten", "IMPL")  # without launches, what is asserted of their results is not so
    aten.impl("_assert_async.msg", lambda *args: None, "CPU")
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else list(OPERATORS)
    table = Table("operator", *("launches", "us", "reference us") * 2)
    table.caption = "forward, then with gradients"
    for name in names:
        table.add_row(*row(next(case for case in CASES if case.op == name), driver))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
