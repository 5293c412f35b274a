"""What a GPU's host does on the way to a launch: it copies no numbers to the device, for which it would have to wait."""

from __future__ import annotations

import sys

import pytest
import torch
from contract import FIRST, gradients, op

import segops

pytest.importorskip("triton")

MAPS = torch.rand(1, 3, 6, 7)
CRFS = {
    "conv_crf": lambda x: segops.conv_crf(x, MAPS, filter_size=3, bilateral_sigma_rgb=[0.1, 0.2, 0.2], iterations=1),
    "dense_crf": lambda x: segops.dense_crf(x, MAPS, bilateral_sigma_rgb=[0.1, 0.2, 0.2], iterations=1),
}


@pytest.fixture
def copies(monkeypatch):
    """The files of ours that made a tensor from numbers of the host."""
    files = []

    def watch(owner, name, data):
        make = getattr(owner, name)

        def watched(*args, **kwargs):
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("segops.") and not isinstance(args[data], torch.Tensor):
                files.append(caller)
            return make(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(torch, "tensor", 0)
    watch(torch, "as_tensor", 0)
    watch(torch.Tensor, "new_tensor", 1)
    return files


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_no_launch_makes_tensors_from_numbers_of_the_host(case, copies):
    args = case.args(torch.float32)
    with segops.backend("triton"):
        if case.gradients:
            gradients(case, args)
        else:
            op(case)(*args)
    assert not copies


@pytest.mark.parametrize("name", CRFS)
def test_no_crf_makes_tensors_from_numbers_of_the_host(name, copies):
    logits = torch.randn(1, 2, 6, 7, requires_grad=True)
    with segops.backend("triton"):
        CRFS[name](logits).sum().backward()
    assert not copies
