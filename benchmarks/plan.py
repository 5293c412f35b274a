"""Which rows a run measures: a workload, who computes it, and with how many threads."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from registry import PROVIDERS, SWEEPS, WORKLOADS, Provider, Workload

from segops import _backends
from segops._registry import OPERATORS, load_all


@dataclass(frozen=True)
class Row:
    """``backend`` is the GPU backend that segops takes here, where it would take another by itself."""

    workload: Workload
    provider: Provider
    device: str
    threads: int = 0
    backend: str | None = None

    @property
    def name(self) -> str:
        return f"{self.provider.name}_{self.backend}" if self.backend else self.provider.name

    def __str__(self) -> str:
        return f"{self.workload}-{self.name}-{'gpu' if self.device == 'cuda' else self.threads}"


@functools.cache
def cuda_operators() -> frozenset[str]:
    """The operators that have a CUDA C++ kernel here."""
    load_all()
    return frozenset(n for n in OPERATORS if _backends.unavailable(n, "cuda", "cuda") is None)


def other_backend(op: str) -> str | None:
    """Of an operator with Triton and CUDA C++ kernels, those that are not chosen by themselves."""
    op = {"dense_crf": "mean_field"}.get(op, op)
    if op not in cuda_operators():
        return None
    return "triton" if op in _backends.PROVEN_ON_DEVICE else "cuda"


@contextmanager
def preferring(backend: str | None) -> Iterator[None]:
    """Which GPU kernels run by themselves: ``backend``'s, forward and backward; None leaves the choice as it is."""
    before = _backends.PROVEN_ON_DEVICE
    if backend is not None:
        _backends.PROVEN_ON_DEVICE = cuda_operators() if backend == "cuda" else frozenset()
    try:
        yield
    finally:
        _backends.PROVEN_ON_DEVICE = before


def operators() -> list[str]:
    return list(dict.fromkeys(w.op for w in WORKLOADS))


def workloads(ops: Sequence[str], quick: bool = False, sweeps: bool = True) -> list[Workload]:
    """All of these operators, then sweeps, then what may be late; ``quick`` takes one each, the smallest of a sweep or
    else the first."""
    if not quick:
        found = [w for op in ops for w in WORKLOADS if w.op == op]
        found += [w for op in ops for w in SWEEPS if w.op == op and sweeps]
        return sorted(found, key=lambda w: w.late)
    return [next(w for w in (*SWEEPS, *WORKLOADS) if w.op == op) for op in ops]


def threads_of(workload: Workload, provider: Provider, most: int) -> tuple[int, ...]:
    """All there are; where a peer has one thread, one thread of the others too."""
    if provider.single:
        return (1,)
    one = any(p.single and not p.missing() for p in PROVIDERS if p.op == workload.op)
    return (1, most) if one and most > 1 else (most,)


def rows(
    device: str, threads: int | None = None, ops: Sequence[str] = (), quick: bool = False, sweeps: bool = True
) -> list[Row]:
    """In the order of the registry. Left out are providers whose package is missing (see ``missing``), and for
    sweeps and ``quick`` those that compile, which takes longer than all the rest."""
    most = threads or torch.get_num_threads()
    found = []
    for w in workloads(ops or operators(), quick, sweeps):
        for p in PROVIDERS:
            if not p.takes(w, device) or p.missing() or (p.compiles and (quick or w in SWEEPS)):
                continue
            if device == "cpu":
                found += [Row(w, p, device, t) for t in threads_of(w, p, most)]
            else:
                others = (other_backend(w.op),) if p.name == "segops" else ()
                found += [Row(w, p, device, backend=b) for b in (None, *filter(None, others))]
    return found


def missing(ops: Sequence[str] = ()) -> dict[str, list[str]]:
    """The modules that are not installed, and the rows that they are missing from."""
    absent: dict[str, list[str]] = {}
    for p in PROVIDERS:
        if p.op in (ops or operators()) and p.missing():
            absent.setdefault(str(p.needs), []).append(f"{p.op}/{p.name}")
    return absent
