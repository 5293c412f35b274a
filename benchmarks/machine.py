"""The machine that is measured on: its name, what is installed, and two ceilings, copy bandwidth and matrix rate."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segops import _native
from segops.cli.info import cpu_name, version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "pydensecrf2", "kornia", "monai", "segmentation-models-pytorch", "mmcv-lite")


def git(*arguments: str) -> str:
    """What git says of this checkout, or nothing where there is none."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip()


def facts(device: str) -> dict[str, Any]:
    """What figures depend on, for the JSON."""
    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += " and changes"
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit or None,
        "cpu": cpu_name(),
        "isa": _native.isa(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: found for name in PACKAGES if (found := version(name))},
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
    }


def clock() -> float:
    """Seconds, once everything that was started has ended."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def best_of(rounds: int, call: Callable[[], Any]) -> float:
    """The shortest of several rounds, in seconds."""
    call()
    best = float("inf")
    for _ in range(rounds):
        start = clock()
        call()
        best = min(best, clock() - start)
    return best


@functools.cache
def copy_bandwidth(device: str, threads: int) -> float:
    """Bytes read and written a second by a plain copy, larger than any cache. ``threads`` are those that are set."""
    source = torch.rand(1 << (28 if device == "cuda" else 26), device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_of(5, lambda: target.copy_(source))


@functools.cache
def matrix_rate(device: str, threads: int, kind: str) -> float:
    """Multiplications and additions a second of a square product: ``kind`` is a dtype's name, or tf32."""
    if kind == "tf32" and device == "cpu":
        kind = "float32"
    size = 8192 if device == "cuda" else 2048
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        rate = 2 * size**3 / best_of(3, lambda: a @ b)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    # Where a processor has no halves of its own, one computes in float32.
    return max(rate, matrix_rate(device, threads, "float32")) if device == "cpu" and kind != "float32" else rate
