"""The compiled libraries: loaded once, and the reason kept where one is missing.

``_C`` holds the CPU operators, ``_C_cuda`` the CUDA operators (both on torch's stable ABI), ``_host`` the NumPy front
end.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

LIBRARIES = ("_C", "_C_cuda", "_host")


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    if name == "_C" and os.environ.get("SEGOPS_BACKEND", "cpu") not in ("", "cpu"):
        return None, f"left out, because SEGOPS_BACKEND={os.environ['SEGOPS_BACKEND']}"
    if importlib.util.find_spec(f"segops.{name}") is None:
        return None, "not built (see SEGOPS_BUILD in the README)"
    if name != "_host":
        import torch  # noqa: F401  the library's symbols are torch's
    try:
        return importlib.import_module(f"segops.{name}"), None
    except ImportError as error:
        return None, f"does not load: {error}"


def library(name: str) -> ModuleType | None:
    """The loaded library, or None; `missing` says why."""
    return _load(name)[0]


def missing(name: str) -> str | None:
    """Why the library is not there, or None if it is."""
    return _load(name)[1]


def status() -> dict[str, str | None]:
    """Each library's reason for being absent, None where it is present."""
    return {name: missing(name) for name in LIBRARIES}


def isa() -> str | None:
    """The instruction set that the CPU kernels chose: base, avx2 or avx512."""
    module = library("_C")
    return module.isa() if module else None


def build_config() -> dict:
    """What setup.py wrote down when it built the libraries; empty for a pure-Python install."""
    path = Path(__file__).with_name("_build_config.json")
    return json.loads(path.read_text()) if path.exists() else {}
