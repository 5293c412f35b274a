"""The CPU kernels are compiled for several instruction sets; each must give the answers of the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import torch
from segops import _native
from segops._registry import OPERATORS
from segops.testing import CASES, assert_as_good_as
import segops.ops

for case in CASES:
    for dtype in (torch.float32, torch.float64):
        actual = getattr(torch.ops.segops, case.op)(*case.args(dtype))
        eager = OPERATORS[case.op].reference(*case.args(dtype))
        oracle = OPERATORS[case.op].reference(*case.args(torch.float64))
        pack = lambda x: x if isinstance(x, tuple) else (x,)
        for a, e, o in zip(pack(actual), pack(eager), pack(oracle)):
            assert_as_good_as(a, e, o, str(case))
print("ran on", _native.isa())
"""


@pytest.mark.parametrize("isa", ["base", "avx2", ""])
def test_every_instruction_set_agrees_with_the_reference(isa):
    """SEGOPS_ISA only holds the choice down: a processor without AVX2 runs the base kernels each time."""
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**os.environ, "SEGOPS_ISA": isa}
    )
    assert result.returncode == 0, result.stderr
    assert "ran on " in result.stdout
    if isa == "base":
        assert "ran on base" in result.stdout
