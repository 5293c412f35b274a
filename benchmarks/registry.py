"""What is measured: workloads (an operator on inputs of the size that papers use) and providers (who computes it).

The rows are in the files beside this one that are called rows_<family>.py; each says what it measures.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from bench_types import Inputs, Provider, Workload, error, tensors

__all__ = ["PROVIDERS", "SWEEPS", "WORKLOADS", "Inputs", "Provider", "Workload", "error", "tensors"]


def families() -> list[ModuleType]:
    """The modules of rows. Of a base revision (see base.py) those are left out whose operators it does not have."""
    modules = []
    for path in sorted(Path(__file__).parent.glob("rows_*.py")):
        try:
            modules.append(importlib.import_module(path.stem))
        except AttributeError:
            if "SEGOPS_BENCH_BASE" not in os.environ:
                raise
    return modules


FAMILIES = families()
WORKLOADS: tuple[Workload, ...] = tuple(w for family in FAMILIES for w in getattr(family, "WORKLOADS", ()))
PROVIDERS: tuple[Provider, ...] = tuple(p for family in FAMILIES for p in getattr(family, "PROVIDERS", ()))
# How cost grows: operators at other sizes, drawn rather than listed; the smallest are what --quick takes.
SWEEPS: tuple[Workload, ...] = tuple(w for family in FAMILIES for w in getattr(family, "SWEEPS", ()))
