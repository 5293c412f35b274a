"""Every Triton kernel compiles for a GPU on a machine without one, and a compilation that goes wrong is noticed."""

import os
import re
import subprocess
import sys

import pytest

from segops.testing.sass import spills_in_loops

pytest.importorskip("triton")

SABOTAGE = """
from segops.kernels.lattice import simplex_kernel
from segops.testing import aot

types = {"features": "*T", "key": "*i64", "weight": "*T", "status": "*i32"}
for broken in ({"BLOCK": 128, "COORDS": 8, "maxnreg": 24}, {"BLOCK": 100, "COORDS": 8}):
    aot.entries = lambda: iter([(simplex_kernel, types, [broken])])
    print("exit status", aot.main(["--arch", "90", "--quick"]))
"""

LISTING = """
        Function : kernel
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x00000a0000017a02 */
        /*0010*/                   STL [R1], R0 ;             /* 0x0000000001007387 */
        /*0020*/                   BSSY B0, 0x70 ;            /* 0x0000004000007945 */
        /*0030*/                   IADD3 R4, R4, 0x40, RZ ;   /* 0x0000004004047810 */
        /*0040*/               @P1 BRA 0x80 ;                 /* 0x0000003000001947 */
        /*0050*/                   NOP ;                      /* 0x0000000000007918 */
        /*0060*/                   BRA.U UP0, 0x90 ;          /* 0x0000002000007547 */
        /*0070*/              @!P0 BRA 0x30 ;                 /* 0xffffffb000008947 */
        /*0080*/                   LDL.LU R0, [R1] ;          /* 0x0000000001007983 */
        /*0090*/                   EXIT ;                     /* 0x000000000000794d */
        /*00a0*/                   NOP ;                      /* 0x0000000000007918 */
        /*00b0*/                   BSYNC B0 ;                 /* 0x0000000000007941 */
        /*00c0*/                   BRA 0xc0;                  /* 0xfffffff000007947 */
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
    assert re.search(r"SPILLS: 24 registers, .* bytes of spilled registers, in loops [1-9]", out)
    assert "FAILED" in out


@pytest.mark.parametrize(
    ("place", "jumps", "count"),
    [
        (None, {}, 0),  # stored before the loop, read back behind it
        ("0050", {}, 1),
        ("00a0", {}, 0),  # where nothing leads from the loop
        ("00a0", {"UP0, 0x90": "UP0, 0xa0"}, 1),  # beside the code, and by BSYNC back into the loop
        ("00a0", {"@P1 BRA 0x80": "CALL.REL.NOINC 0xa0", "BSYNC B0": "RET.REL.NODEC R2 0x0"}, 1),
        (None, {"BRA.U UP0, 0x90": "BRX R2 -0x60"}, 1),  # to nobody knows where
    ],
)
def test_spills_in_loops_are_told_from_registers_put_aside(place, jumps, count):
    listing = LISTING
    for old, new in jumps.items():
        assert listing.count(old) == 1
        listing = listing.replace(old, new)
    if place:
        listing = re.sub(rf"/\*{place}\*/ +(\S+) ;", f"/*{place}*/ STL [R1], R7 ;", listing)
    assert spills_in_loops(listing) == count


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
