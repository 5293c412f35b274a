"""segops.nn.EMAttention: the authors' unit, both moving averages, also over processes."""

from __future__ import annotations

import subprocess
import sys

import golden_crf
import pytest
import torch

import segops

GOLDEN = {k: torch.from_numpy(v) for k, v in golden_crf.load("em_attention").items()}


def unit(**options) -> segops.nn.EMAttention:
    """With the parameters of the golden case."""
    module = segops.nn.EMAttention(12, 5, **options)
    keys = {"conv1.weight": "conv1_w", "conv1.bias": "conv1_b", "conv2.weight": "conv2_w", "bases": "mu0"}
    keys |= {"norm.weight": "bn_w", "norm.bias": "bn_b", "norm.running_mean": "bn_rm", "norm.running_var": "bn_rv"}
    state = {name: GOLDEN[f"unit_{key}"] for name, key in keys.items()}
    module.load_state_dict({**state, "norm.num_batches_tracked": torch.tensor(0)})
    return module


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden(mode):
    module, x = unit().train(mode == "train"), GOLDEN["unit_x"].requires_grad_()
    out, bases = module(x)
    dx, dw = torch.autograd.grad(out, (x, module.conv2.weight), GOLDEN["unit_gout"])
    for name, actual in {"out": out, "mu": bases, "dx": dx, "conv2_dw": dw}.items():
        torch.testing.assert_close(actual, GOLDEN[f"unit_{mode}_{name}"], rtol=1e-5, atol=1e-5)
    assert torch.equal(module.bases, GOLDEN["unit_mu0"])  # the authors' forward leaves them alone


def test_moving_average_of_emanet():
    module = unit()
    module.update_bases(module(GOLDEN["unit_x"])[1])
    torch.testing.assert_close(module.bases, GOLDEN["unit_ma_emanet"], rtol=1e-5, atol=1e-6)


def test_moving_average_of_mmsegmentation():
    module = unit(convention="mmseg")
    module.eval()(GOLDEN["unit_x"])
    assert torch.equal(module.bases, GOLDEN["unit_mu0"])
    module.train()(GOLDEN["unit_x"])
    torch.testing.assert_close(module.bases, GOLDEN["unit_ma_mmseg_momentum0.1"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convention", ["emanet", "mmseg"])
def test_the_first_convolution_learns_only_if_unrolled(convention):
    for unrolled in (False, True):
        module = segops.nn.EMAttention(6, 3, convention=convention, unrolled=unrolled)
        out, bases = module(torch.randn(2, 6, 5, 5))
        module.update_bases(bases)  # must not get in the way of backward
        out.sum().backward()
        assert (module.conv1.weight.grad is not None) is unrolled
        assert module.conv2.weight.grad is not None


PROCESS = """
import sys, torch, segops
rank, address, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
images = torch.load(file)["images"]
for convention, expected in torch.load(file)["expected"].items():
    unit = segops.nn.EMAttention(6, 3, convention=convention)
    unit.bases.fill_(0.5)
    unit.update_bases(images[:1] if rank == 0 else images[1:])
    torch.testing.assert_close(unit.bases, expected)
torch.distributed.destroy_process_group()
"""


def test_processes_share_the_moving_average(tmp_path):
    """Two processes with one and two images end with the bases of one process with three."""
    images, expected = torch.nn.functional.normalize(torch.randn(3, 6, 3), dim=1), {}
    for convention in ("emanet", "mmseg"):
        module = segops.nn.EMAttention(6, 3, convention=convention)
        module.bases.fill_(0.5)
        module.update_bases(images)
        expected[convention] = module.bases
    torch.save({"images": images, "expected": expected}, tmp_path / "bases.pt")
    arguments = [f"file://{tmp_path}/rendezvous", str(tmp_path / "bases.pt")]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), *arguments], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bases": 0}, "num_bases: expected at least 1, got 0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"convention": "paper"}, "convention: expected one of 'emanet', 'mmseg', got 'paper'"),
        ({"momentum": 1.5}, "momentum: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        segops.nn.EMAttention(4, **options)


def test_bad_inputs():
    module = segops.nn.EMAttention(4, 3)
    with pytest.raises(ValueError, match=r"x: expected 4 channels, got shape \(1, 5, 2, 2\)"):
        module(torch.rand(1, 5, 2, 2))
    with pytest.raises(ValueError, match=r"bases: expected shape \(N, 4, 3\), got \(2, 4, 2\)"):
        module.update_bases(torch.rand(2, 4, 2))
    before = module.bases.clone()
    module.update_bases(torch.rand(0, 4, 3))
    assert torch.equal(module.bases, before)
