"""``python -m segops info``: versions, devices, the native libraries and how they were built."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices, the native libraries and how they were built."""
    facts = gather()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        show(facts)


def gather() -> dict[str, Any]:
    """Everything that ``info`` shows."""
    import segops
    from segops import _native

    return {
        "versions": {
            "segops": segops.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "triton")},
        },
        "machine": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            **torch_facts(),
        },
        "libraries": _native.status(),
        "build": _native.build_config(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("SEGOPS_", "TRITON_INTERPRET"))},
    }


def version(package: str) -> str | None:
    """The installed version, without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The name that the processor gives itself."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def torch_facts() -> dict[str, Any]:
    """Threads and devices, as torch sees them."""
    import torch

    from segops import _native

    devices = []
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        devices.append(f"cuda:{i} {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB")
    return {
        "isa": _native.isa(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda of torch": torch.version.cuda,
        "devices": ["cpu", *devices],
    }


def show(facts: dict[str, Any]) -> None:
    """Print the facts, a section each."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for section, rows in facts.items():
        name = section
        if section == "libraries":
            rows = {library: reason or "loaded" for library, reason in rows.items()}
        if section == "build" and not rows:
            rows = {"": "no notes of a build beside the package"}
        for key, value in rows.items():
            if isinstance(value, dict):
                value = [f"{k}: {v}" for k, v in value.items()]
            if isinstance(value, list):
                value = (" " if str(key).endswith("flags") else "\n").join(map(str, value))
            table.add_row(name, key, "-" if value in (None, "") else str(value))
            name = ""
    Console(highlight=False, markup=False).print(table)
