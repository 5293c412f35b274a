"""One call registers an operator with torch: schema, reference, device kernels, fake, autograd, autocast, vmap.

The schema is Python's; the CPU kernel is C++'s own registration (csrc/cpu), found by the dispatcher without a detour.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _backends, _native


@dataclass(frozen=True)
class Operator:
    """A registered operator; ``file`` is the name that its layers share."""

    name: str
    file: str
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    differentiable: bool
    autocast: torch.dtype | None
    detail: Callable[..., str] | None


OPERATORS: dict[str, Operator] = {}

_library = torch.library.Library("segops", "DEF")
_cuda_library = torch.library.Library("segops_cuda", "DEF")


def register(
    schema: str,
    *,
    file: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    batch: Sequence[int] = (),
    autocast: torch.dtype | None = torch.float32,
    detail: Callable[..., str] | None = None,
) -> None:
    """Register ``segops::<schema>``, which gives no defaults: torch would drop such arguments from a backward's inputs.

    ``batch`` lists the positions of the arguments whose first dimension is the batch, if all results have it too: then
    vmap folds into it (a batch of 1 is shared). Without it vmap is a loop. Under autocast an operator runs in the dtype
    ``autocast``; None leaves it to the public function, which lowers what is a matrix product at heart.
    ``detail`` takes the backend and the public function's arguments and tells `explain` what its kernel does with them.
    """
    name = schema[: schema.index("(")]
    OPERATORS[name] = Operator(name, file, schema, reference, fake, backward is not None, autocast, detail)
    qualified = f"segops::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _cuda_library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _reference_kernel(name), "CompositeExplicitAutograd")
    _library.impl(name, lambda *args: _backends.run(name, "cuda", *args), "CUDA")
    forced = _backends.forced()
    if forced not in (None, "cpu"):
        _library.impl(name, lambda *args: _backends.run(name, "cpu", *args), "CPU")
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    torch.library.register_vmap(qualified, _vmap(name, frozenset(batch)))
    if autocast is not None:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(qualified, device, autocast)


def query(schema: str) -> None:
    """Define what compiled code alone answers about an operator, for `explain`; nothing that computes."""
    _library.define(schema)


def call(operator: Callable[..., Any], *args: Any) -> Any:
    """Call an operator; what a compiled kernel has to say of its arguments becomes a ValueError or a MemoryError.

    Torch turns a kernel's exceptions into RuntimeError, so their type travels in the text (see
    csrc/include/segops/torch_errors.h).
    """
    try:
        return operator(*args)
    except RuntimeError as error:
        for kind in (ValueError, MemoryError):
            _, tag, message = str(error).partition(f"segops.{kind.__name__}: ")
            if tag:
                raise kind(message.splitlines()[0]) from None
        raise


def load_all() -> None:
    """Register every operator and load the compiled kernels."""
    from . import ops  # noqa: F401

    _native.library("_C")
    _native.library("_C_cuda")


def _reference_kernel(name: str) -> Callable[..., Any]:
    """The reference as a device's kernel: it says once that it is no fast one."""

    def kernel(*args: Any) -> Any:
        device = _backends.device_of(args)
        if _backends.forced() is not None:
            return _backends.run(name, device, *args)
        if device == "cpu":
            warnings.warn(
                f"segops.{name} runs as its plain PyTorch reference: the CPU library is {_native.missing('_C')}",
                stacklevel=2,
            )
        return OPERATORS[name].reference(*args)

    return kernel


def _vmap(name: str, batch: frozenset[int]) -> Callable[..., Any]:
    operator = getattr(torch.ops.segops, name)

    def one(arg: Any, dim: Any, index: int) -> Any:
        if isinstance(arg, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [one(a, d, index) for a, d in zip(arg, dim, strict=True)]
        return arg if dim is None else arg.select(dim, index)

    def loop(info: Any, in_dims: tuple, *args: Any) -> Any:
        results = [
            operator(*(one(a, d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(r) for r in zip(*results, strict=True)), (0,) * len(results[0])

    def fold(info: Any, in_dims: tuple, *args: Any) -> Any:
        size = info.batch_size
        first = args[min(batch)]
        inner = first.shape[1 if in_dims[min(batch)] == 0 else 0]  # the batch that the operator itself would see

        def flat(arg: Any, dim: Any) -> Any:
            if isinstance(arg, (list, tuple)):
                return [flat(a, d) for a, d in zip(arg, dim or [None] * len(arg), strict=True)]
            if dim is None:
                return arg if arg.shape[0] == 1 and inner != 1 else arg.expand(size, *arg.shape).flatten(0, 1)
            arg = arg.movedim(dim, 0)
            return arg.expand(size, inner, *arg.shape[2:]).flatten(0, 1)

        result = operator(
            *(flat(a, d) if i in batch else a for i, (a, d) in enumerate(zip(args, in_dims, strict=True)))
        )
        if isinstance(result, Tensor):
            return result.unflatten(0, (size, inner)), 0
        return tuple(r.unflatten(0, (size, inner)) for r in result), (0,) * len(result)

    def rule(info: Any, in_dims: tuple, *args: Any) -> Any:
        elsewhere = any(_mapped(d) for i, d in enumerate(in_dims) if i not in batch)
        return (loop if elsewhere or not batch or info.batch_size == 0 else fold)(info, in_dims, *args)

    return rule


def _mapped(dim: Any) -> bool:
    return any(map(_mapped, dim)) if isinstance(dim, (list, tuple)) else dim is not None
