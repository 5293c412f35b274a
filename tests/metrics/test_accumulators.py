"""Accumulating metrics: batches, objects and processes add up to one pass over everything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from segops import metrics

KINDS = {
    "ConfusionMatrix": lambda: metrics.ConfusionMatrix(4),
    "BoundaryIoU": lambda: metrics.BoundaryIoU(4, ratio=0.1),
    "BoundaryF": lambda: metrics.BoundaryF(4, tolerance=0.05),
    "TrimapIoU": lambda: metrics.TrimapIoU(4, width=2),
}


def batch(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    prediction, target = torch.randint(0, 4, (2, n, 10, 14), generator=g).unbind()
    return prediction, target.masked_fill(torch.rand(target.shape, generator=g) < 0.1, 255)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_objects_add_up(kind):
    prediction, target = batch(5, 0)
    whole, first, second = KINDS[kind](), KINDS[kind](), KINDS[kind]()
    whole.update(prediction, target)
    first.update(prediction[:1], target[:1])
    first.update(prediction[1:3], target[1:3])
    second.update(prediction[3:], target[3:])
    first.merge(second)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-12, atol=0, equal_nan=True)
    assert whole.sums.dtype == torch.float64 or torch.equal(first.sums, whole.sums)


@pytest.mark.parametrize("kind", KINDS)
def test_reset_forgets(kind):
    metric = KINDS[kind]()
    empty = metric.compute().clone()
    metric.update(*batch(1, 0))
    assert not torch.equal(metric.sums, KINDS[kind]().sums)
    metric.reset()
    torch.testing.assert_close(metric.compute(), empty, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_computed_does_not_change(kind):
    metric = KINDS[kind]()
    metric.update(*batch(1, 0))
    result = metric.compute()
    before = result.clone()
    metric.update(*batch(1, 1))
    torch.testing.assert_close(result, before, equal_nan=True)


def test_sync_without_processes_is_a_copy():
    metric = metrics.ConfusionMatrix(4)
    metric.update(*batch(1, 0))
    other = metric.sync()
    assert torch.equal(other.compute(), metric.compute())
    other.update(*batch(1, 1))
    assert not torch.equal(other.compute(), metric.compute())


WORKER = """
import os, sys
import torch, torch.distributed as dist
from test_accumulators import KINDS, batch

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
prediction, target = batch(3, 0)
for make in KINDS.values():
    whole, own = make(), make()
    whole.update(prediction, target)
    own.update(prediction[rank::2], target[rank::2])
    alone = own.sums.clone()
    for _ in range(2):  # nothing is counted twice
        torch.testing.assert_close(own.sync().compute(), whole.compute(), rtol=1e-12, atol=0, equal_nan=True)
    assert torch.equal(own.sums, alone)
dist.destroy_process_group()
"""


def test_two_processes_add_up(tmp_path):
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    command = [sys.executable, "-c", WORKER, str(tmp_path / "rendezvous")]
    workers = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "PYTHONPATH": path}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()


def test_only_equals_merge():
    with pytest.raises(TypeError, match="other: expected a BoundaryIoU, got ConfusionMatrix"):
        metrics.BoundaryIoU(3).merge(metrics.ConfusionMatrix(4))
    with pytest.raises(ValueError, match="other: expected the options .*'ratio': 0.02.*, got .*'ratio': 0.1"):
        metrics.BoundaryIoU(3).merge(metrics.BoundaryIoU(3, ratio=0.1))
    with pytest.raises(ValueError, match="'num_classes': 3"):
        metrics.ConfusionMatrix(3).merge(metrics.ConfusionMatrix(4))


def test_repr_says_what_it_is():
    expected = "BoundaryIoU(num_classes=3, ignore_index=None, ratio=0.02, distance='chessboard')"
    assert repr(metrics.BoundaryIoU(3, None)) == expected
