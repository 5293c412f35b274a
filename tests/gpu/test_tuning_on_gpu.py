"""Constants of launches on a CUDA device: an unknown machine times them, and the results stay right."""

from __future__ import annotations

import pytest
import torch

import segops

tuning = pytest.importorskip("segops.kernels.tuning")
pytestmark = pytest.mark.gpu


def test_an_unknown_machine_is_tuned(monkeypatch, tmp_path):
    monkeypatch.delenv("SEGOPS_AUTOTUNE", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "machine", lambda x: "unknown")
    monkeypatch.setattr(tuning, "_chosen", {})
    query, key, value = (torch.randn(1, channels, 9, 7, device="cuda") for channels in (16, 16, 40))
    with segops.backend("triton"):
        tuned = segops.criss_cross_attention(query, key, value)
        chosen = tuning.read()
        assert tuned.equal(segops.criss_cross_attention(query, key, value))
    assert len(chosen) == 1  # columns and rows together
    assert tuning.read() == chosen
    oracle = segops.criss_cross_attention(*(x.cpu().double() for x in (query, key, value)))
    torch.testing.assert_close(tuned.cpu().double(), oracle, rtol=1e-4, atol=1e-5)
