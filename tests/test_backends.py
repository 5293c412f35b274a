"""The choice of a backend: forced, explained, and never silent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import segops
from segops import _backends

VALUES, FEATURES = torch.rand(1, 2, 40), torch.rand(1, 2, 40)


def test_explain_says_what_runs_and_why_not_the_others():
    text = segops.explain("dense_crf", torch.rand(1, 3, 4, 4))
    assert text.startswith("mean_field on cpu: cpu (")
    assert "not cuda: runs on CUDA tensors, these are on cpu" in text
    assert "not reference: available, but cpu goes first" in text
    meta = segops.explain("permutohedral_filter", VALUES.to("meta"))
    assert meta.startswith("permutohedral_filter on meta: reference")
    with pytest.raises(ValueError, match="explain: expected one of .*mean_field.*, got 'crf'"):
        segops.explain("crf")


def test_forcing():
    out = segops.permutohedral_filter(VALUES, FEATURES)
    with segops.backend("reference"):
        torch.testing.assert_close(segops.permutohedral_filter(VALUES, FEATURES), out)
        with segops.backend("cpu"):
            torch.testing.assert_close(segops.permutohedral_filter(VALUES, FEATURES), out)
    with pytest.raises(_backends.BackendError, match="'cuda' can't run: runs on CUDA tensors"), segops.backend("cuda"):
        segops.permutohedral_filter(VALUES, FEATURES)
    with pytest.raises(ValueError, match="backend: expected one of cpu, cuda, triton, reference, got 'fast'"):
        segops.backend("fast")


def test_forcing_reaches_the_backward_pass(monkeypatch):
    ran = []
    kernel = _backends.kernel
    monkeypatch.setattr(
        _backends, "kernel", lambda name, backend, *of: ran.append((name, backend)) or kernel(name, backend, *of)
    )
    logits = torch.rand(1, 3, 40, requires_grad=True)
    with segops.backend("reference"):
        segops.mean_field(logits, [FEATURES], [1.0]).square().sum().backward()
    assert ran == [("mean_field", "reference"), ("mean_field_backward", "reference")]


def test_forcing_around_a_compiled_function():
    compiled = torch.compile(lambda v, f: segops.permutohedral_filter(v, f) * 2)
    with segops.backend("reference"):
        torch.testing.assert_close(compiled(VALUES, FEATURES), 2 * segops.permutohedral_filter(VALUES, FEATURES))


def test_cuda_kernels_are_left_alone_with_what_they_can_not_compute(monkeypatch):
    available = _backends._native.missing("_C_cuda") is None
    expected = "cuda" if available else "triton"
    monkeypatch.setenv("SEGOPS_BACKEND", "")
    assert _backends.select("mean_field", "cuda", torch.float32) == expected
    assert _backends.select("mean_field", "cuda", torch.float64) == "triton"
    assert _backends.select("lovasz_softmax", "cuda", torch.float32) == "triton"
    assert "float32, these are torch.float64" in str(
        _backends.unavailable("mean_field", "cuda", "cuda", torch.float64)
    ) or (not available)


def test_table_names_every_operator_and_gives_reasons():
    table = dict(_backends.table())
    assert {"mean_field", "permutohedral_filter", "gaussian_filter_exact"} <= set(table)
    for reasons in table.values():
        assert set(reasons) == set(_backends.BACKENDS)
        assert reasons["reference"] is None
        assert all(reason is None or reason for reason in reasons.values())


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


CODE = """
import torch, segops
print(segops.explain("permutohedral_filter").splitlines()[0])
print(segops.permutohedral_filter(torch.ones(1, 1, 5), torch.zeros(1, 2, 5)).shape)
"""


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_environment_forces_the_whole_process(backend):
    result = run(CODE, SEGOPS_BACKEND=backend, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert f"permutohedral_filter on cpu: {backend}" in result.stdout
    assert "torch.Size([1, 1, 5])" in result.stdout


def test_the_environment_names_no_backend():
    result = run(CODE, SEGOPS_BACKEND="gpu")
    assert result.returncode != 0
    assert "SEGOPS_BACKEND: expected one of cpu, cuda, triton, reference, got 'gpu'" in result.stderr


def test_a_missing_library_is_no_secret():
    """The reference takes over, with a warning; forcing the library is an error."""
    hide = "import sys; sys.modules['segops._C'] = None\n"
    result = run(hide + CODE)
    assert result.returncode == 0, result.stderr
    assert "permutohedral_filter on cpu: reference" in result.stdout
    assert "runs as its plain PyTorch reference: the CPU library is not built" in result.stderr
    result = run(hide + CODE, SEGOPS_BACKEND="cpu")
    assert (
        "BackendError: segops.permutohedral_filter: the backend 'cpu' can't run: the CPU library is not built"
        in result.stderr
    )
