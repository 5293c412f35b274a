"""The CPU kernels are compiled for several instruction sets; each must give the answers of the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Operators whose products multiply bfloat16 as it is.
PAIRS = ("nonlocal_attention", "criss_cross_attention", "em_attention", "encoding", "interlaced_attention", "psa")

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


@pytest.mark.parametrize("isa", ["base", "avx2"])
def test_pairs_of_bfloat16_without_their_instruction(isa):
    """The same code on any processor, where it is not chosen because it takes longer than widening them."""
    files = [str(Path(__file__).parent / "ops" / f"test_{op}.py") for op in PAIRS]
    command = [
        sys.executable,
        *"-m pytest -q -p no:cacheprovider -k".split(),
        "halves_are or one_key or not_a_number",
        *files,
    ]
    wish = {"SEGOPS_ISA": isa, "SEGOPS_BFLOAT16_PAIRS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **wish})
    assert result.returncode == 0, result.stdout
