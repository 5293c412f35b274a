"""Leave models and training alone where timm or Lightning can not be imported (torchvision needs the CUDA build)."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

NEEDS = {"data": ("torchvision",), "models": ("timm",), "training": ("timm", "lightning.pytorch")}


def missing(names: tuple[str, ...]) -> str | None:
    """Why one of them can't be imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            return f"{name} can't be imported ({error})"
    return None


@functools.cache
def untested() -> dict[str, str]:
    """The folders, and why. Asked for after tests/conftest.py was read: torchvision imports triton."""
    return {folder: reason for folder, names in NEEDS.items() if (reason := missing(names))}


def pytest_report_header() -> list[str]:
    """Say so at the head of the run."""
    return [f"segops.{folder} is not tested: {reason}" for folder, reason in untested().items()]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """These folders and their tests."""
    return True if collection_path.name in untested() else None
