"""Constants of launches: when they are timed, where the choice is kept, and that every candidate computes the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from contract import FIRST, op, results

import segops
from segops._registry import OPERATORS

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from segops.kernels import tuning

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
X = torch.zeros(1)
FILES = ("atrous", "criss_cross", "em_attention", "encoding", "interlaced", "nonlocal", "psa")
HALVES = (
    "atrous",
    "criss_cross",
    "em_attention",
    "interlaced",
    "nonlocal_attention",
    "psa",
)  # of which all arguments may be
CONVERTED = [case for case in FIRST if case.op.startswith(FILES) and not case.op.startswith("psa_mask")]


class Clock:
    """A machine that no kernel knows. Candidates are named A, B, ...; `times` says how long one takes, or how it fails."""

    def __init__(self, **times):
        self.times, self.timed = times, []

    def launch(self, constants):
        if isinstance(self.times[constants["TILE"]], Exception):
            raise self.times[constants["TILE"]]
        return constants["TILE"]

    def time_of(self, launch, constants):
        self.timed.append(constants["TILE"])
        return self.times[launch(constants)]

    def run(self, *sizes, machines=(), x=X):
        return tuning.run("op.kernel", self.launch, [{"TILE": t} for t in self.times], machines, x, *sizes)


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Makes clocks; a new one is a new process that finds the files of the others."""

    def make(**times):
        new = Clock(**times)
        monkeypatch.setattr(tuning, "time_of", new.time_of)
        monkeypatch.setattr(tuning, "_chosen", {})
        return new

    monkeypatch.setattr(tuning, "machine", lambda x: "a GPU")
    monkeypatch.delenv("SEGOPS_AUTOTUNE", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return make


def too_large():
    return OutOfResources(300_000, 200_000, "shared memory")


def test_an_unknown_machine_times_each_candidate_once_and_takes_the_fastest(clock):
    c = clock(A=3.0, B=1.0, C=2.0)
    assert [c.run(7), c.run(7)] == ["B", "B"]
    assert c.timed == ["A", "B", "C"]


def test_a_known_machine_takes_the_first_untimed(clock):
    c = clock(A=3.0, B=1.0)
    assert c.run(machines=("another", "a GPU")) == "A"
    assert not c.timed


@pytest.mark.parametrize("case", ["one candidate", "interpreter", "SEGOPS_AUTOTUNE=0", "deterministic", "capture"])
def test_nothing_is_timed(case, clock, monkeypatch):
    c = clock(A=3.0) if case == "one candidate" else clock(A=3.0, B=1.0)
    if case == "interpreter":
        monkeypatch.setattr(tuning, "machine", lambda x: None)
    if case == "SEGOPS_AUTOTUNE=0":
        monkeypatch.setenv("SEGOPS_AUTOTUNE", "0")
    if case == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    if case == "capture":
        monkeypatch.setattr(tuning, "capturing", lambda: True)
    assert c.run() == "A"
    assert not c.timed
    assert not tuning.file().exists()


def test_a_graph_is_captured_with_what_was_found_before(clock, monkeypatch):
    c = clock(A=3.0, B=1.0)
    assert c.run() == "B"
    monkeypatch.setattr(tuning, "capturing", lambda: True)
    assert c.run() == "B"


def test_a_fresh_process_takes_it_from_the_file(clock):
    assert clock(A=3.0, B=1.0).run() == "B"
    fresh = clock(A=3.0, B=1.0)
    assert fresh.run() == "B"
    assert not fresh.timed
    assert [p.name for p in tuning.file().parent.iterdir()] == [tuning.file().name]  # no half-written one beside it


@pytest.mark.parametrize("fresh", [False, True])
def test_another_problem_is_timed_anew(fresh, clock, monkeypatch):
    process = clock(A=3.0, B=1.0)

    def timed(*sizes, x=X):
        c = clock(A=3.0, B=1.0) if fresh else process
        c.timed.clear()
        c.run(*sizes, x=x)
        return bool(c.timed)

    assert timed(100, 64)
    assert not timed(65, 64)  # the next power of two is the same
    assert timed(129, 64)
    assert timed(100, 128)
    assert timed(100, 64, x=X.double())
    monkeypatch.setattr(tuning, "machine", lambda x: "another GPU")
    assert timed(100, 64)
    assert len(tuning.read()) == 5


def test_another_triton_and_other_candidates_are_timed_anew(clock, monkeypatch):
    assert clock(A=3.0, B=1.0).run() == "B"
    assert clock(A=3.0, B=1.0, C=0.5).run() == "C"
    monkeypatch.setattr(tuning.triton, "__version__", "99")
    assert clock(A=1.0, B=2.0).run() == "A"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"other": {"TILE": "A"}}', "\xff"])
def test_a_file_that_is_none_is_replaced(text, clock):
    tuning.file().parent.mkdir()
    tuning.file().write_bytes(text.encode("latin-1"))
    assert clock(A=3.0, B=1.0).run() == "B"
    assert {"TILE": "B"} in tuning.read().values()


@pytest.mark.parametrize("kept", [None, 1, "B", {"TILE": "Z"}])
def test_what_is_no_candidate_is_not_launched(kept, clock):
    clock(A=3.0, B=1.0).run()
    (key,) = tuning.read()
    tuning.write(key, kept)
    assert clock(A=1.0, B=2.0).run() == "A"


def test_without_a_folder_the_process_keeps_it(clock, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    c = clock(A=3.0, B=1.0)
    assert [c.run(), c.run()] == ["B", "B"]
    assert c.timed == ["A", "B"]


@pytest.mark.parametrize("error", [too_large(), RuntimeError("PassManager::run failed"), torch.OutOfMemoryError()])
def test_a_candidate_that_fails_is_ruled_out(error, clock):
    assert clock(A=error, B=2.0, C=1.0).run() == "C"


def test_if_all_fail_the_first_one_says_why(clock):
    first = too_large()
    c = clock(A=first, B=RuntimeError("B"))
    with pytest.raises(OutOfResources) as caught:
        c.run()
    assert caught.value is first
    assert not tuning.file().exists()


def test_other_errors_are_not_hidden(clock):
    with pytest.raises(TypeError):
        clock(A=1.0, B=TypeError()).run()


@pytest.mark.parametrize(
    ("case", "dtype", "eps"),
    [
        *((case, torch.float32, 1e-5) for case in CONVERTED),
        *((case, torch.bfloat16, 2.0**-7) for case in CONVERTED if case.op.startswith(HALVES) and case.gradients),
    ],
    ids=str,
)
def test_every_candidate_computes_the_same(case, dtype, eps, monkeypatch):
    counts = {}

    def run(number):
        def pick(name, launch, candidates, *rest):
            counts[name] = len(candidates)
            return candidates[min(number, len(candidates) - 1)]

        monkeypatch.setattr(tuning, "pick", pick)
        with segops.backend("triton"):
            return results(op(case)(*case.args(dtype)))

    first = run(0)
    assert min(counts.values()) > 1
    for number in range(1, max(counts.values())):
        for a, b in zip(run(number), first, strict=True):
            torch.testing.assert_close(a, b, rtol=eps, atol=eps * b.abs().max().item())


@pytest.mark.parametrize("file", sorted({OPERATORS[case.op].file for case in CONVERTED}))
def test_machines_are_those_of_kept_results(file):
    module = importlib.import_module(f"segops.kernels.{file}")
    measured = {
        result["gpu"]
        for path in RESULTS.glob("gpu-*.json")
        for result in [json.loads(path.read_text())]
        if any(row["workload"].startswith(f"{file}-") and row["provider"] == "segops" for row in result["rows"])
    }
    assert set(module.MACHINES) <= measured


def test_what_is_added_to_is_timed_on_a_copy(clock):
    """atrous_conv2d's kernel adds to the branches before; to time it must not add."""
    from segops.kernels import atrous_conv2d

    timed = []

    def time_of(launch, constants):
        timed.append(constants)
        launch(constants)
        return 1.0

    x, weight = torch.randn(1, 3, 5, 6), torch.randn(1, 9, 3, 4)
    clock()
    once, many = torch.ones(1, 4, 5, 6), torch.ones(1, 4, 5, 6)
    geometry = (3, 3), (-2, -2), (2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "time_of", time_of)
        atrous_conv2d.convolve(x, weight, None, many, *geometry, add=True)
        assert timed
        patch.setattr(tuning, "machine", lambda x: None)
        atrous_conv2d.convolve(x, weight, None, once, *geometry, add=True)
    assert torch.equal(once, many)
