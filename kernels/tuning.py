"""Which of a few sets of constants a kernel is launched with: a choice kept in its file, or timed once on each machine.

A kernel's file lists candidates and the machines on which the first of them was measured; there, under the interpreter,
with SEGOPS_AUTOTUNE=0 and with deterministic algorithms (the order of sums must not hang on a clock) it is taken
untimed. Elsewhere all are timed when a problem of new size comes, and the fastest is kept: in memory, and in a file
beside what Triton has compiled. Sizes count by their next power of two, so that few problems are new.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

Constants = dict[str, Any]  # constexprs and options of a launch
Launch = Callable[[Constants], Any]

_chosen: dict[tuple, Constants] = {}


def variants(first: Constants, *changes: Constants) -> list[Constants]:
    """Candidates: the first, and what each of the changes makes of it, if anything."""
    return [first, *(c for change in changes if (c := {**first, **change}) != first)]


name_of = functools.cache(torch.cuda.get_device_name)  # each launch asks


def machine(x: Tensor) -> str | None:
    """The name of the GPU that x is on; the interpreter's tensors are on none."""
    return name_of(x.device) if x.is_cuda else None


def enabled() -> bool:
    return os.environ.get("SEGOPS_AUTOTUNE") != "0" and not torch.are_deterministic_algorithms_enabled()


def capturing() -> bool:
    """A CUDA graph takes up what is launched, and nothing may wait for it."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def time_of(launch: Launch, constants: Constants) -> float:
    """Milliseconds, those of the compilation not counted."""
    return triton.testing.do_bench(lambda: launch(constants), warmup=5, rep=20, return_mode="median")


def fastest(launch: Launch, candidates: list[Constants]) -> tuple[Constants, float]:
    """The first, with infinity, if none could be timed: then its own launch says why."""
    times = []
    for constants in candidates:
        try:
            times.append(time_of(launch, constants))
        except (TritonError, RuntimeError):  # it does not compile, or needs more shared memory or memory than there is
            times.append(math.inf)
    best = times.index(min(times))
    return candidates[best], times[best]


def file() -> Path:
    return Path(triton.knobs.cache.dir) / "segops_tuning.json"


def read() -> dict[str, Constants]:
    """What this and other processes wrote; nothing if that is no such file."""
    try:
        found = json.loads(file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(key: str, constants: Constants) -> None:
    """Files replace each other whole: nobody reads half of one. What one of two writers loses is timed once more."""
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file().parent, prefix=file().name, delete=False) as fresh:
            json.dump({**read(), key: constants}, fresh, indent=1)
        os.replace(fresh.name, file())
    except OSError:
        pass  # the choice holds in this process


def run(name: str, launch: Launch, candidates: list[Constants], machines: Sequence[str], x: Tensor, *sizes: int) -> Any:
    """Launch with the candidate that is known, or found, to be fastest.

    Args:
        name: of the kernel, with that of its file.
        launch: launches with a candidate's constants. It is called many times and must write the same each time: it
            overwrites, and adds to nothing.
        candidates: the first is taken wherever nothing is timed.
        machines: the GPUs, by torch.cuda.get_device_name, on which the first was measured.
        x: a tensor of the problem; its device and dtype count.
        *sizes: what else the time depends on.

    Returns:
        What `launch` does.
    """
    return launch(pick(name, launch, candidates, machines, x, *sizes))


def pick(
    name: str, launch: Launch, candidates: list[Constants], machines: Sequence[str], x: Tensor, *sizes: int
) -> Constants:
    """The constants that `run` launches with."""
    gpu = machine(x)
    if len(candidates) == 1 or gpu is None or gpu in machines or not enabled():
        return candidates[0]
    rounded = [(size - 1).bit_length() for size in sizes]
    problem = (name, gpu, x.dtype, *rounded, *candidates[0].values())  # cheap, as every launch needs it
    if problem not in _chosen:
        key = f"{gpu}, Triton {triton.__version__}: {name} {x.dtype} {[1 << n for n in rounded]} of {candidates}"
        kept = read().get(key)
        if kept in candidates:
            _chosen[problem] = kept
        elif capturing():
            return candidates[0]
        else:
            _chosen[problem], time = fastest(launch, candidates)
            if time < math.inf:
                write(key, _chosen[problem])
    return _chosen[problem]
