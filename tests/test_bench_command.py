"""``python -m segops bench`` and the script for machines with a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segops.cli import app

ROOT = Path(__file__).parents[1]


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "dense_crv"], "--op: there is no benchmark of 'dense_crv'; there are "),
        (["--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (
            ["--op", "uncertain_points", "--quick", "--minutes", "1e-9", "--base", "no-such"],
            "--base: git knows no revision",
        ),
    ],
)
def test_bad_options_are_one_sentence(arguments, message):
    result = bench(*arguments)
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {message}"), result.stderr


def test_without_a_checkout_it_says_so(monkeypatch, tmp_path):
    module = sys.modules["segops.cli.bench"]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "segops" / "cli" / "bench.py"))
    result = bench("--quick")
    assert result.exit_code == 1 and "needs a checkout" in result.stderr


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


def test_the_hosts_share_of_a_gpu_call_is_measured_without_one():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SEGOPS_BACKEND")}
    command = [sys.executable, "benchmarks/host_time.py", "pyramid_pool"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (row,) = (line for line in done.stdout.splitlines() if "pyramid_pool" in line)
    _, launches, forward, reference, both_launches, both, _ = (cell.strip() for cell in row.strip("│").split("│"))
    assert (launches, both_launches) == ("1", "2")
    assert 0 < int(forward) < int(both) and int(reference) > 0
