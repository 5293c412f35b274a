"""Launches of Triton kernels on a machine without a GPU: all but the last step.

`install` puts a stub in place of Triton's driver and sends operators on CPU tensors to their Triton kernels. A launch
is then specialised and compiled for an H100 as it would be there, and is counted, and nothing runs: results are
whatever memory held. ``python -m segops.testing.stub_driver`` does that with the first case of every operator and with
those of a single element, which Triton makes constants of, and exits with 1 if one does not compile.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.errors import TritonError

from segops import _backends
from segops._registry import OPERATORS, load_all
from segops.testing.cases import CASES, Case


class StubDriver:
    """What Triton asks of a driver: an H100's properties, and launchers that count."""

    launches = 0

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


_libraries: list[torch.library.Library] = []  # what they register goes when they do


def install() -> StubDriver:
    """For the rest of the process."""
    load_all()
    warnings.simplefilter("ignore")  # torch says that kernels are replaced
    driver = StubDriver()
    triton.runtime.driver.set_active(driver)
    unavailable = _backends.unavailable
    _backends.unavailable = lambda name, backend, device, *rest: unavailable(name, backend, "cuda", *rest)
    _backends.order = lambda name, device: ("triton", "reference")
    _libraries[:] = torch.library.Library("segops", "IMPL"), torch.library.Library("aten", "IMPL")
    for name in OPERATORS:
        _libraries[0].impl(name, lambda *args, name=name: _backends.run(name, "cpu", *args), "CPU")
    _libraries[1].impl("_assert_async.msg", lambda *args: None, "CPU")  # of results that nobody computed
    return driver


def calls(case: Case) -> Iterator[Callable[[], object]]:
    """The operator in float32, and if it has gradients, with these."""
    args, operator = case.args(torch.float32), getattr(torch.ops.segops, case.op)
    leaves = [x for i in case.gradients for x in (args[i] if isinstance(args[i], list) else [args[i]])]

    def both() -> None:
        out = operator(*args)
        torch.autograd.grad((out if isinstance(out, Tensor) else out[0]).sum(), leaves, allow_unused=True)

    for leaf in leaves:
        leaf.requires_grad_()
    yield lambda: operator(*args)
    if leaves and OPERATORS[case.op].differentiable:
        yield both


def cases() -> list[Case]:
    """The first of every operator, and those of one pixel, point, channel, key, ..."""
    first = {case.op: case for case in reversed(CASES)}
    return [case for case in CASES if case is first[case.op] or case.name.startswith("one_")]


def main() -> int:
    """1 if a launch does not compile, and prints which."""
    driver, failures = install(), 0
    for case in cases():
        try:
            for call in calls(case):
                call()
        except TritonError as error:
            failures += 1
            print(f"{case}: {error}")
        except Exception as error:  # a kernel's result is read on the way, and here there is none
            print(f"{case}: not followed to the end, {type(error).__name__}")
    print(f"{len(cases())} cases, {driver.launches} launches, {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
