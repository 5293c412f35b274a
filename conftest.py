"""Leave the models alone where timm can not be imported (torchvision's wheels need the CUDA build of torch)."""

from __future__ import annotations

from pathlib import Path

try:
    import timm  # noqa: F401

    MISSING = None
except (ImportError, RuntimeError) as error:
    MISSING = error


def pytest_report_header() -> list[str]:
    """Say so at the head of the run."""
    return [f"segops.models is not tested: timm can't be imported ({MISSING})"] if MISSING else []


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """The models and their tests."""
    return True if MISSING and collection_path.name == "models" else None
