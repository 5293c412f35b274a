"""The comparison itself: the gate, what a run says and keeps, the plots, the pages, and the command line around it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import base
import machine
import measure
import memory
import page_tables
import plan
import plots
import pytest
import report
import run
import table
import torch
from bench_types import Provider, Workload, error
from rich.console import Console
from typer.testing import CliRunner

from segops.cli import app

ROOT = Path(__file__).parents[1]


def toy_workload(size=None):
    return Workload(
        "toy",
        f"square{'' if size is None else f'_{size}'}",
        make=lambda: {"x": torch.linspace(1, 2, 1000)},
        bytes_moved=lambda inputs: 8000,
        oracle=lambda inputs: inputs["x"].double() ** 2,
        operations=lambda inputs: 1000.0,
        size=size,
    )


def computing(function):
    return lambda inputs: lambda: function(inputs["x"])


def raising(inputs):
    raise RuntimeError("out of order")


PROVIDERS = (
    Provider("segops", "toy", computing(lambda x: x * x)),
    Provider("eager", "toy", computing(lambda x: x**2)),
    Provider("skewed", "toy", computing(lambda x: x**2 + 0.1)),
    Provider("cut", "toy", computing(lambda x: x[:1].square())),
    Provider("nan", "toy", computing(lambda x: x * torch.nan)),
    Provider("broken", "toy", raising),
    Provider("absent", "toy", raising, needs="no_such_package.module"),
)


def register_toy(monkeypatch):
    """A registry of one operator, whose providers are right, wrong in three ways, broken and not installed."""
    sweeps = tuple(toy_workload(size) for size in (10, 100, 1000))
    monkeypatch.setattr(plan, "WORKLOADS", (toy_workload(),))
    monkeypatch.setattr(plan, "SWEEPS", sweeps)
    for module in (measure, run):
        monkeypatch.setattr(module, "SWEEPS", sweeps)
    monkeypatch.setattr(plan, "PROVIDERS", PROVIDERS)
    monkeypatch.setattr(memory, "peak_on_cpu", lambda workload, provider, threads: 3 * memory.MIB)
    monkeypatch.setitem(run.EFFORT, "full", measure.Effort(0.01, 1.0))


@pytest.fixture
def toy(monkeypatch):
    register_toy(monkeypatch)


@pytest.fixture(scope="module")
def measured_toy():
    with pytest.MonkeyPatch.context() as monkeypatch:
        register_toy(monkeypatch)
        return run.bench(device="cpu", threads=1)


@pytest.fixture
def toy_result(measured_toy):
    return copy.deepcopy(measured_toy)


def rows_of(result, provider):
    return [r for r in report.listed(result["rows"]) if r["provider"] == provider]


def printed(result):
    console = Console(width=table.WIDTH, record=True, file=open(os.devnull, "w"))
    for op, rows in report.by_op(report.listed(result["rows"])).items():
        console.print(table.operator(op, rows))
    table.summary(console, result)
    return console.export_text()


@pytest.mark.parametrize("provider", ["skewed", "cut", "nan"])
def test_a_wrong_provider_has_no_figure_and_no_ratio(toy_result, provider):
    (row,) = rows_of(toy_result, provider)
    assert row["status"] == "wrong" and not row["error"] <= row["tolerance"]
    assert not {"median_ms", "peak_mib", "share_of_floor"} & set(row)
    ours = {**rows_of(toy_result, "segops")[0]}
    assert report.ratio(ours, [ours, row]) is None, "a wrong provider is nobody's peer"
    line = next(line for line in printed(toy_result).splitlines() if line.startswith(f"  {provider} "))
    assert "WRONG" in line and "x " not in line


def test_a_wrong_segops_has_no_ratio_either(toy_result):
    (peer,), (wrong,) = rows_of(toy_result, "eager"), rows_of(toy_result, "skewed")
    assert report.ratio({**wrong, "provider": "segops"}, [peer]) is None


def test_what_a_provider_raises_is_shown_and_the_others_are_measured(toy_result):
    (row,) = rows_of(toy_result, "broken")
    assert row["status"] == "failed" and row["reason"] == "RuntimeError: out of order"
    assert rows_of(toy_result, "eager")[0]["status"] == "ok"


def test_the_json_has_what_figures_depend_on(toy_result, tmp_path):
    run.write(toy_result, tmp_path / "folder" / "result.json")
    result = report.load(tmp_path / "folder" / "result.json")
    wanted = {
        "date",
        "commit",
        "cpu",
        "isa",
        "cores",
        "gpu",
        "python",
        "torch",
        "versions",
        "method",
        "ceilings",
        "missing",
    }
    assert wanted <= set(result)
    assert result["missing"] == {"no_such_package.module": ["toy/absent"]}
    assert result["ceilings"][0]["copy_gb_s"] > 0 and result["ceilings"][0]["matrix_gflop_s"]["float32"] > 0
    (row,) = rows_of(result, "segops")
    assert row["op"] == "toy" and row["workload"] == "toy-square" and row["threads"] == 1
    assert row["rounds"] >= 1 and row["iqr_ms"] >= 0 and row["peak_mib"] == 3
    assert row["inputs_mib"] == row["results_mib"] == 4000 / memory.MIB
    assert row["share_of_floor"] == pytest.approx(row["floor_ms"] / row["median_ms"])
    json.dumps(result, allow_nan=True)


def test_the_table_names_the_peer_and_marks_what_is_lost(toy_result):
    (ours,), (peer,) = rows_of(toy_result, "segops"), rows_of(toy_result, "eager")
    ours["median_ms"], peer["median_ms"] = 1.0, 4.2
    assert "4.2x eager" in printed(toy_result) and "segops loses 0 of 1." in printed(toy_result)
    ours["median_ms"] = 4.3
    text = printed(toy_result)
    assert "0.97x eager  LOSES" in text and "segops loses 1 of 1:" in text
    assert "not installed: no_such_package.module (toy/absent)" in text
    assert max(map(len, text.splitlines())) <= table.WIDTH


def test_the_peer_is_the_fastest_correct_one_with_as_many_threads():
    def row(provider, threads, median, status="ok"):
        return {"workload": "w", "provider": provider, "threads": threads, "median_ms": median, "status": status}

    rows = [row("a", 1, 5.0), row("a", 2, 4.0), row("b", 2, 3.0), row("c", 2, 1.0, "wrong"), row("segops", 2, 2.0)]
    assert report.peer_of(rows[-1], rows) is rows[2] and report.ratio(rows[-1], rows) == 1.5
    assert report.peer_of(row("segops", 1, 1.0), rows) is rows[0]
    assert report.peer_of(row("segops", 4, 1.0), rows) is rows[2], "whoever there is, where nobody has as many"


def test_quick_takes_one_row_of_each_operator(toy):
    assert [w.name for w in plan.workloads(["toy"], quick=True)] == ["square_10"]
    assert [w.name for w in plan.workloads(["toy"])] == ["square", "square_10", "square_100", "square_1000"]


def test_a_peer_with_one_thread_is_compared_on_one_and_on_all(toy, monkeypatch):
    monkeypatch.setattr(plan, "PROVIDERS", (PROVIDERS[0], Provider("old", "toy", raising, single=True)))
    rows = plan.rows("cpu", threads=2, sweeps=False)
    assert [(r.name, r.threads) for r in rows] == [("segops", 1), ("segops", 2), ("old", 1)]


def test_rows_that_come_too_late_are_named(toy):
    result = run.bench(device="cpu", threads=1, minutes=1e-9)
    assert result["rows"] == [] and "toy-square-segops-1" in result["unmeasured"]
    assert "not measured for want of time" in printed(result)


def test_plots_are_written(toy_result, tmp_path):
    paths = plots.draw(toy_result, tmp_path / "plots")
    assert [p.name for p in paths] == ["speedups.png", "growth.png", "roofline.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    assert plots.draw({**toy_result, "rows": []}, tmp_path / "none") == []


def test_a_page_shows_wrong_rows_and_lost_ones(toy_result):
    (ours,), (peer,) = rows_of(toy_result, "segops"), rows_of(toy_result, "eager")
    ours["median_ms"], peer["median_ms"] = 2.0, 1.0
    text = page_tables.file_section("toy.json", toy_result)
    assert "| `skewed` | wrong by" in text and "failed: RuntimeError" in text
    assert "**0.50**" in page_tables.losses({"toy.json": toy_result})
    assert "**0.50**" in page_tables.operators(["toy"], {"toy.json": toy_result}, "../")


def test_shapes_count_in_the_gate():
    assert error(torch.ones(3, 1), torch.ones(3)) == float("inf")
    assert error([torch.ones(3), torch.full((3,), torch.nan)], [torch.ones(3)] * 2) != error(1, 1)


def test_memory_counts_what_a_call_takes_and_not_what_was_held():
    held = torch.ones(1 << 24)
    peak = memory.peak_of_process(lambda: torch.ones(1 << 24).neg())  # 64 MiB and its negative
    assert peak / memory.MIB == pytest.approx(128, abs=8), held.shape


def test_threads_come_back():
    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    with measure.threads(1):
        assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1"
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == before


def test_changes_against_a_base_are_those_of_segops(toy_result):
    before = [{**r, "median_ms": 2 * r["median_ms"]} for r in toy_result["rows"] if r["status"] == "ok"]
    pairs = base.changes(toy_result["rows"], before)
    assert {r["provider"] for r, _ in pairs} == {"segops"} and len(pairs) == 4
    console = Console(width=120, record=True, file=open(os.devnull, "w"))
    console.print(base.table(toy_result["rows"], before, "HEAD~1"))
    assert "2.0x" in console.export_text()


def test_a_base_that_git_does_not_know():
    with pytest.raises(ValueError, match="--base: git knows no revision 'none'"), base.worktree("none"):
        pass


def test_ceilings_are_rates():
    assert machine.matrix_rate("cpu", 1, "float32") > 1e9 and machine.copy_bandwidth("cpu", 1) > 1e8


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "dense_crv"], "--op: there is no benchmark of 'dense_crv'; there are aspp, "),
        (["--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (
            ["--op", "uncertain_points", "--quick", "--minutes", "1e-9", "--base", "no-such"],
            "--base: git knows no revision",
        ),
    ],
)
def test_bad_options_are_one_sentence(arguments, message):
    result = bench(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith(f"segops bench: {message}"), result.stderr


def test_without_a_checkout_it_says_so(monkeypatch, tmp_path):
    module = sys.modules["segops.cli.bench"]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "segops" / "cli" / "bench.py"))
    result = bench("--quick")
    assert result.exit_code == 2 and "needs a checkout" in result.stderr


def test_a_quick_run_prints_keeps_and_draws(tmp_path):
    file = tmp_path / "result.json"
    result = bench("--op", "uncertain_points", "--device", "cpu", "--quick", "--json", file, "--plot", tmp_path)
    assert result.exit_code == 0, result.output
    assert "uncertain_points" in result.output and "ceilings, " in result.output
    kept = json.loads(file.read_text())
    assert {r["status"] for r in kept["rows"]} == {"ok"} and kept["quick"]
    ours = next(r for r in kept["rows"] if r["provider"] == "segops")
    assert sys.platform != "linux" or ours["peak_mib"] >= ours["results_mib"]
    assert (tmp_path / "speedups.png").exists()


STUB = """#!/usr/bin/env bash
case "$*" in
  *get_device_capability*) exit ${STUB_DEVICE:-0} ;;
  *tests/gpu*) exit 3 ;;
esac
echo "stub: $*"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux machines with a GPU")
@pytest.mark.parametrize(("device", "status"), [("0", 1), ("1", 69)])
def test_the_gpu_script_goes_on_after_a_step_that_fails(tmp_path, device, status):
    stub, out = tmp_path / "python", tmp_path / "out"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stub), "STUB_DEVICE": device, "PATH": "/usr/bin:/bin"}
    script = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(out)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    log = (out / "log.txt").read_text()
    assert log == done.stdout
    if device == "0":
        assert "tests on the GPU: 3 after" in log and f"-m segops bench --device cuda --json {out}/gpu.json" in log
