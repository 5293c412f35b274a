"""Every Triton kernel compiles for a GPU on a machine without one, and a compilation that goes wrong is noticed."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SABOTAGE = """
from segops.kernels.lattice import simplex_kernel
from segops.testing import aot

types = {"features": "*T", "key": "*i64", "weight": "*T", "status": "*i32"}
for broken in ({"BLOCK": 128, "COORDS": 8, "maxnreg": 24}, {"BLOCK": 100, "COORDS": 8}):
    aot.entries = lambda: iter([(simplex_kernel, types, [broken])])
    print("exit status", aot.main(["--arch", "90", "--quick"]))
"""


def python(*arguments: str) -> subprocess.CompletedProcess:
    """Without the interpreter that the other tests run the kernels in: it would take the compiler's place."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SEGOPS_BACKEND")}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_every_kernel_compiles_without_spills():
    result = python("-m", "segops.testing.aot", "--arch", "90", "--quick")
    assert result.returncode == 0, result.stdout + result.stderr
    for kernel in ("sample", "scatter", "slope", "taps", "run", "winner", "move"):
        assert f".{kernel}_kernel " in result.stdout
    for kernel in ("simplex", "number", "neighbour", "splat", "carry", "blur", "slice", "update", "filter", "features"):
        assert f".{kernel}_kernel " in result.stdout
    for kernel in ("keys", "hinge_keys", "count", "loss", "slope", "activation_backward", "ones", "steps"):
        assert f".{kernel}_kernel " in result.stdout
    for kernel in ("argmax", "scan", "search"):
        assert f".{kernel}_kernel " in result.stdout


def test_spills_and_failures_are_reported():
    out = python("-c", SABOTAGE).stdout
    assert out.count("exit status 1") == 2, out
    assert "SPILLS: 24 registers" in out
    assert "FAILED" in out


def test_the_interpreter_is_refused():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "segops.testing.aot"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "unset it" in result.stderr


def test_every_operators_launches_compile_as_they_are_specialised():
    result = python("-m", "segops.testing.stub_driver")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " launches, 0 failures" in result.stdout
    unfollowed = {line.split("-")[0] for line in result.stdout.splitlines() if "not followed" in line}
    assert unfollowed <= {"mean_field", "mean_field_backward"}  # they read the sizes of a lattice that nobody built
