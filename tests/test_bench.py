"""The comparison itself: the gate, what a run says and keeps, memory, plots and pages."""

import copy
import dataclasses
import json
import os
import re

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
from bench_types import Provider, Refused, Workload, error
from rich.console import Console

from segops import _backends


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


def refusing(inputs):
    raise Refused("only in halves")


PROVIDERS = (
    Provider("segops", "toy", computing(lambda x: x * x)),
    Provider("eager", "toy", computing(lambda x: x**2)),
    Provider("skewed", "toy", computing(lambda x: x**2 + 0.1)),
    Provider("cut", "toy", computing(lambda x: x[:1].square())),
    Provider("nan", "toy", computing(lambda x: x * torch.nan)),
    Provider("broken", "toy", raising),
    Provider("choosy", "toy", refusing),
    Provider("absent", "toy", raising, needs="no_such_package.module"),
)


def register_toy(monkeypatch):
    """A registry of one operator, whose providers are right, wrong in three ways, broken, choosy and not installed."""
    sweeps = tuple(toy_workload(size) for size in (10, 100, 1000))
    monkeypatch.setattr(plan, "WORKLOADS", (toy_workload(),))
    monkeypatch.setattr(plan, "SWEEPS", sweeps)
    for module in (measure, run):
        monkeypatch.setattr(module, "SWEEPS", sweeps)
    monkeypatch.setattr(plan, "PROVIDERS", PROVIDERS)
    monkeypatch.setattr(memory, "peak_on_cpu", lambda workload, provider, threads: 3 * memory.MIB)
    monkeypatch.setitem(run.EFFORT, "full", measure.Effort(0.01))


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
    assert row["status"] == "wrong" and not float(row["error"]) <= row["tolerance"]
    assert not {"median_ms", "peak_mib", "share_of_floor"} & set(row)
    ours = {**rows_of(toy_result, "segops")[0]}
    assert report.ratio(ours, [ours, row]) is None, "a wrong provider is nobody's peer"
    line = next(line for line in printed(toy_result).splitlines() if line.startswith(f"  {provider} "))
    assert "WRONG" in line and not re.search(r"\dx ", line)


def test_a_wrong_segops_has_no_ratio_either(toy_result):
    (peer,), (wrong,) = rows_of(toy_result, "eager"), rows_of(toy_result, "skewed")
    assert report.ratio({**wrong, "provider": "segops"}, [peer]) is None


def test_what_a_provider_raises_is_shown_and_the_others_are_measured(toy_result):
    (row,) = rows_of(toy_result, "broken")
    assert row["status"] == "failed" and row["reason"] == "RuntimeError: out of order"
    assert rows_of(toy_result, "eager")[0]["status"] == "ok"


def test_what_a_provider_refuses_is_shown_with_the_reason(toy_result):
    (row,) = rows_of(toy_result, "choosy")
    assert row["status"] == "refused" and row["reason"] == "only in halves" and "median_ms" not in row
    assert "refused: only in halves" in printed(toy_result)
    assert "| `choosy` | refused: only in halves |" in page_tables.file_section("toy.json", toy_result)


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
    assert json.dumps(result, allow_nan=False), "JSON that every reader reads"


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


def test_a_slow_peer_is_left_out_on_cpus_alone():
    peer = Provider("eager", "toy", raising, slow_on=("_1000",))
    taken = [peer.takes(toy_workload(size), device) for device in ("cpu", "cuda") for size in (10, 1000)]
    assert taken == [True, False, True, True]


def test_a_provider_is_left_out_on_devices_that_it_does_not_take():
    peers = [Provider("a", "toy", raising, cpu_only=True), Provider("b", "toy", raising, gpu_only=True)]
    assert [p.name for p in peers if p.takes(toy_workload(), "cpu")] == ["a"]
    assert [p.name for p in peers if p.takes(toy_workload(), "cuda")] == ["b"]


def test_what_is_not_weighed_has_no_memory(toy, monkeypatch):
    monkeypatch.setattr(plan, "WORKLOADS", (dataclasses.replace(toy_workload(), weighed=False),))
    monkeypatch.setattr(plan, "SWEEPS", ())
    (row,) = rows_of(run.bench(device="cpu", threads=1), "segops")
    assert row["status"] == "ok" and "peak_mib" not in row


def test_what_is_late_comes_after_the_sweeps(toy, monkeypatch):
    late = dataclasses.replace(toy_workload(), name="late", late=True)
    monkeypatch.setattr(plan, "WORKLOADS", (late, toy_workload()))
    names = [w.name for w in plan.workloads(["toy"])]
    assert names[0] == "square" and names[-1] == "late"


def test_a_peer_with_one_thread_is_compared_on_one_and_on_all(toy, monkeypatch):
    monkeypatch.setattr(plan, "PROVIDERS", (PROVIDERS[0], Provider("old", "toy", raising, single=True)))
    rows = plan.rows("cpu", threads=2, sweeps=False)
    assert [(r.name, r.threads) for r in rows] == [("segops", 1), ("segops", 2), ("old", 1)]


def test_rows_that_come_too_late_are_named(toy):
    result = run.bench(device="cpu", threads=1, minutes=1e-9)
    assert result["rows"] == [] and "toy-square" in result["unmeasured"]
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


def test_rotated_inputs_are_copies_in_memory_of_their_own():
    x = torch.arange(6.0).view(2, 3).t().requires_grad_()
    copy = measure.clones({"x": x, "k": 3})
    assert copy["k"] == 3 and torch.equal(copy["x"], x) and copy["x"].stride() == x.stride()
    assert copy["x"].is_leaf and copy["x"].requires_grad and copy["x"].data_ptr() != x.data_ptr()


def test_on_a_gpu_both_backends_are_rows_and_the_choice_comes_back(toy, monkeypatch):
    monkeypatch.setattr(plan, "cuda_operators", lambda: frozenset({"toy"}))
    names = [r.name for r in plan.rows("cuda", sweeps=False) if r.provider.name == "segops"]
    assert names == ["segops", "segops_cuda"], "Triton by itself, CUDA C++ on request"
    before = _backends.PROVEN_ON_DEVICE
    with plan.preferring("cuda"):
        assert _backends.order("toy", "cuda")[0] == "cuda"
        assert plan.other_backend("toy") == "triton"
    with plan.preferring("triton"):
        assert _backends.order("mean_field", "cuda")[0] == "triton"
    assert _backends.PROVEN_ON_DEVICE is before


def test_changes_against_a_base_are_those_of_segops(toy_result):
    before = [{**r, "median_ms": 2 * r["median_ms"]} for r in toy_result["rows"] if r["status"] == "ok"]
    pairs = base.changes(toy_result["rows"], before)
    assert {r["provider"] for r, _ in pairs} == {"segops"} and len(pairs) == 4
    console = Console(width=120, record=True, file=open(os.devnull, "w"))
    console.print(base.table(toy_result["rows"], before, "HEAD~1"))
    assert "2.0x" in console.export_text()


def test_ceilings_are_rates():
    assert machine.matrix_rate("cpu", 1, "float32") > 1e9 and machine.copy_bandwidth("cpu", 1) > 1e8
