"""Which kernel runs, and why the others do not.

The choice sits inside each operator, so torch.compile never sees it. Nothing falls back in silence: a forced backend
that can't run is an error with the reason.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import _native

BACKENDS = ("cpu", "cuda", "triton", "reference")

# CUDA C++ kernels that a committed run (benchmarks/results/gpu-h200.json) shows right and faster than Triton's; the
# others are opt-in.
PROVEN_ON_DEVICE: frozenset[str] = frozenset({"mean_field", "permutohedral_filter"})
OPT_IN = "only on request: not measured to be faster than Triton"


class BackendError(RuntimeError):
    """The backend that was asked for can't run here."""


def forced() -> str | None:
    """The backend that SEGOPS_BACKEND forces on the whole process."""
    name = os.environ.get("SEGOPS_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise ValueError(f"SEGOPS_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


class backend(TorchDispatchMode):
    """Force a backend inside a ``with`` block, for comparison and tests.

    Args:
        name: ``"cpu"`` (C++), ``"cuda"`` (CUDA C++), ``"triton"`` or ``"reference"`` (plain PyTorch).

    Raises:
        ValueError: for another name.
        BackendError: inside the block, from an operator that has no such kernel for its tensors, with the reason.

    Example:
        >>> import torch, segops
        >>> values, features = torch.rand(1, 3, 50), torch.rand(1, 2, 50)
        >>> with segops.backend("reference"):
        ...     out = segops.permutohedral_filter(values, features)
    """

    def __init__(self, name: str):
        super().__init__()
        if name not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
        self.name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace != "segops":
            return func(*args, **(kwargs or {}))
        name, device = func._schema.name.split("::")[1], device_of(args)
        return launch(kernel(name, self.name, device, dtype_of(args)), device, args)


@functools.cache
def _importable(module: str) -> bool:
    """Looked up once: a search of the file system in every call would cost more than small kernels do."""
    return importlib.util.find_spec(module) is not None


def _first_tensor(args: Any) -> torch.Tensor | None:
    return next((arg for arg in args if isinstance(arg, torch.Tensor)), None)


def device_of(args: Any) -> str:
    """Device type of an operator's first tensor."""
    first = _first_tensor(args)
    return "cpu" if first is None else first.device.type


def dtype_of(args: Any) -> torch.dtype | None:
    """What an operator computes in: the dtype of its first floating tensor."""
    return next((a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()), None)


def unavailable(name: str, backend: str, device: str, dtype: torch.dtype | None = None) -> str | None:
    """Why ``backend`` can't run operator ``name`` on tensors of that device type and dtype; None if it can."""
    from ._registry import OPERATORS

    if backend == "reference":
        return None
    if backend == "cpu":
        if device != "cpu":
            return f"runs on CPU tensors, these are on {device}"
        if _native.missing("_C"):
            return f"the CPU library is {_native.missing('_C')}"
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"segops::{name}", "CPU")
        return None if has else "no CPU kernel"
    if backend == "triton":
        if not _importable("triton"):
            return "triton is not installed"
        if not _importable(f"segops.kernels.{OPERATORS[name].file}"):
            return "no Triton kernel"
        if device == "cuda" or (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
            return None
        return f"needs CUDA tensors (or TRITON_INTERPRET=1 for CPU tensors), these are on {device}"
    if device != "cuda":
        return f"runs on CUDA tensors, these are on {device}"
    if _native.missing("_C_cuda"):
        return f"the CUDA library is {_native.missing('_C_cuda')}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"segops_cuda::{name}", "CUDA"):
        return "no CUDA C++ kernel"
    return None if dtype in (None, torch.float32) else f"computes in float32, these are {dtype}"


def order(name: str, device: str) -> tuple[str, ...]:
    """The backends that may be chosen by themselves, best first."""
    if device == "cuda":
        return ("cuda", "triton", "reference") if name in PROVEN_ON_DEVICE else ("triton", "reference")
    return ("cpu", "reference")


def select(name: str, device: str, dtype: torch.dtype | None = None) -> str:
    """The backend that runs ``name`` on this device type and dtype when nothing but SEGOPS_BACKEND decides."""
    return forced() or next(b for b in order(name, device) if unavailable(name, b, device, dtype) is None)


def kernel(name: str, backend: str, device: str, dtype: torch.dtype | None = None) -> Callable[..., Any]:
    """The function that is operator ``name`` on ``backend``, or BackendError."""
    from ._registry import OPERATORS

    reason = unavailable(name, backend, device, dtype)
    if reason is not None:
        raise BackendError(f"segops.{name}: the backend {backend!r} can't run: {reason}")
    if backend == "reference":
        return OPERATORS[name].reference
    if backend == "triton":
        return getattr(importlib.import_module(f"segops.kernels.{OPERATORS[name].file}"), name)
    return getattr(torch.ops.segops if backend == "cpu" else torch.ops.segops_cuda, name)


def run(name: str, device: str, *args: Any) -> Any:
    """What the dispatcher calls where the choice is Python's."""
    return launch(_choice(name, forced(), device, dtype_of(args)), device, args)


@functools.cache
def _choice(name: str, forced: str | None, device: str, dtype: torch.dtype | None) -> Callable[..., Any]:
    """What `select` finds, with what is forced: looked up once, as small kernels take no longer than the search."""
    return kernel(name, select(name, device, dtype), device, dtype)


def launch(function: Callable[..., Any], device: str, args: tuple) -> Any:
    """Call a kernel on the device of its first tensor: Triton launches on the current one."""
    if device != "cuda":
        return function(*args)
    with torch.cuda.device_of(_first_tensor(args)):
        return function(*args)


def table() -> list[tuple[str, dict[str, str | None]]]:
    """Every operator with its backends on this machine: None where available, else the reason."""
    from ._registry import OPERATORS, load_all

    load_all()
    gpu = torch.cuda.is_available()
    rows = []
    for name in sorted(OPERATORS):
        device = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda", "reference": "cpu"}
        reasons = {b: unavailable(name, b, device[b]) for b in BACKENDS}
        if not gpu:
            reasons["triton"] = reasons["triton"] or _without_gpu(name)
        if reasons["cuda"] is None:
            reasons["cuda"] = "no CUDA device" if not gpu else None
            if name not in PROVEN_ON_DEVICE:
                reasons["cuda"] = OPT_IN
        rows.append((name, reasons))
    return rows


def _without_gpu(name: str) -> str | None:
    return (
        None if unavailable(name, "triton", "cpu") is None else "no CUDA device (TRITON_INTERPRET=1 runs it on the CPU)"
    )


def explain(name: str, *args: Any, **options: Any) -> str:
    """Which backend an operator takes for these arguments, and why it does not take the others.

    Args:
        name: the operator, for instance ``"mean_field"`` or a function built on it, ``"dense_crf"``.
        *args: its tensors; without any, CPU tensors are meant.
        **options: its other arguments, where the choice depends on them (`atrous_conv2d`, `aspp`).

    Returns:
        A few lines of text.

    Raises:
        ValueError: if there is no such operator.

    Example:
        >>> import torch, segops
        >>> print(segops.explain("permutohedral_filter", torch.rand(1, 3, 50)))  # doctest: +ELLIPSIS
        permutohedral_filter on cpu: ...
    """
    from ._registry import OPERATORS, load_all

    load_all()
    name = {
        "conv_crf": "conv_crf_message",
        "cross_entropy_dice_focal": "segmentation_sums",
        "dense_crf": "mean_field",
        "psa_collect": "psa",
        "psa_distribute": "psa",
    }.get(name, name)
    if name not in OPERATORS:
        raise ValueError(f"explain: expected one of {', '.join(sorted(OPERATORS))}, got {name!r}")
    device, dtype = device_of(args), dtype_of(args)
    chosen = select(name, device, dtype)
    obstacle = unavailable(name, chosen, device, dtype)
    detail = f", which can't run: {obstacle}" if obstacle else f" ({_native.isa()})" if chosen == "cpu" else ""
    lines = [f"{name} on {device}: {chosen}{detail}"]
    if args and not obstacle and (more := OPERATORS[name].detail):
        lines.append(f"  {more(chosen, *args, **options)}")
    for other in BACKENDS:
        if other == chosen:
            continue
        reason = unavailable(name, other, device, dtype)
        if reason is None:
            reason = f"SEGOPS_BACKEND={forced()}" if forced() else f"available, but {chosen} goes first"
            if other == "cuda" and name not in PROVEN_ON_DEVICE:
                reason = OPT_IN
        lines.append(f"  not {other}: {reason}")
    return "\n".join(lines)
