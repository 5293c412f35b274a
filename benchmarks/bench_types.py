"""What rows of the benchmarks are made of."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Inputs = dict[str, Any]

# Whether there are rows in bfloat16: where it has no instructions for it, a processor's library takes minutes.
BFLOAT16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def tensors(result: Any) -> list[Tensor]:
    """A provider's result as what is compared: a list of tensors."""
    return [torch.as_tensor(x) for x in result] if isinstance(result, (list, tuple)) else [torch.as_tensor(result)]


class Refused(Exception):
    """Raised by ``prepare`` of a provider that does not take such inputs here: it is neither wrong nor failed."""


@dataclass(frozen=True)
class Workload:
    """Inputs of an operator.

    ``oracle`` gives the answer in float64, ``bytes_moved`` what has to cross the memory bus at the least,
    ``operations`` the multiplications and additions of matrix products that nobody can save (in the dtype of the first
    floating tensor, or in TF32 where ``tf32`` says that torch's defaults allow it), and ``comparable`` what of a result
    is held against the oracle, where that is not the result itself. ``size``, in pixels, is the place in a plot of
    growth. What is ``late`` is measured after everything else, if there is time, and of what is not ``weighed`` no peak
    memory, which for whole models takes long.
    """

    op: str
    name: str
    make: Callable[[], Inputs]
    bytes_moved: Callable[[Inputs], int]
    oracle: Callable[[Inputs], Any]
    comparable: Callable[[Inputs, Any], Any] = lambda inputs, result: result
    threads: tuple[int, ...] = (1, 2)
    operations: Callable[[Inputs], float] | None = None
    tf32: bool = False
    size: int | None = None
    late: bool = False
    weighed: bool = True

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


@dataclass(frozen=True)
class Provider:
    """Someone who computes an operator.

    ``prepare(inputs)`` does what is not timed and returns the call that is. Providers whose name does not begin with
    segops are peers: ratios refer to the fastest correct one; one that begins with compiled calls torch.compile, whose
    first call takes seconds. ``needs`` is the module it takes; ``single`` says that it has one thread, ``cpu_only``
    that it takes no CUDA tensors, ``gpu_only`` that it takes no others; ``tolerance`` is the mean absolute difference
    from float64, relative to the mean. On a CPU it is not run on workloads whose name has one of ``slow_on`` in it: it
    takes long there and never wins.
    """

    name: str
    op: str
    prepare: Callable[[Inputs], Callable[[], Any]]
    needs: str | None = None
    single: bool = False
    tolerance: float = field(default=1e-3)
    cpu_only: bool = False
    gpu_only: bool = False
    slow_on: tuple[str, ...] = ()

    @property
    def compiles(self) -> bool:
        return self.name.startswith("compiled")

    def takes(self, workload: Workload, device: str) -> bool:
        """Whether it is run on a workload of its operator."""
        if self.gpu_only if device == "cpu" else self.cpu_only:
            return False
        return workload.op == self.op and not (device == "cpu" and any(x in workload.name for x in self.slow_on))

    def allowed(self, inputs: Inputs) -> float:
        """The tolerance; of bfloat16, unless it is 0, what torch's own products are off by where softmaxes follow."""
        return max(self.tolerance, 3e-2) if self.tolerance and dtype_of(inputs) == torch.bfloat16 else self.tolerance

    def missing(self) -> bool:
        """Whether the module is not installed; looked up without importing it where it lies in no package."""
        try:
            return self.needs is not None and importlib.util.find_spec(self.needs) is None
        except ModuleNotFoundError:  # of the package that it lies in
            return True


def dtype_of(inputs: Inputs) -> torch.dtype:
    """Of the first floating tensor."""
    return next((x.dtype for x in inputs.values() if isinstance(x, Tensor) and x.is_floating_point()), torch.float32)


def error(actual: Any, expected: Any) -> float:
    """The largest of the results' mean absolute differences, relative to the mean of the expected one.

    Infinite where a shape differs; not a number where a result is none.
    """

    def one(a: Tensor, b: Tensor) -> float:
        if a.shape != b.shape:
            return float("inf")
        return float((a.double() - b.double()).abs().mean() / b.double().abs().mean())

    pairs = zip(tensors(actual), tensors(expected), strict=True)
    return max((one(a, b) for a, b in pairs), key=lambda e: (e != e, e))


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """A training step's share: the result and the gradients of the inputs that want one."""
    out = function(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def doubled(inputs: Inputs) -> Inputs:
    """The inputs in float64, gradients wanted where they were."""
    return {
        k: v.detach().double().requires_grad_(v.requires_grad) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def moved(inputs: Inputs, device: str) -> Inputs:
    """The inputs on another device, gradients wanted where they were."""

    def move(x: Any) -> Any:
        return x.detach().to(device).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

    return inputs if device == "cpu" else pytree.tree_map(move, inputs)


def tensors_once(inputs: Inputs) -> int:
    """Bytes where every tensor that comes in has one of its size that goes out."""
    return sum(2 * t.numel() * t.element_size() for t in inputs.values() if isinstance(t, Tensor))
