"""Rows of the distance transform: masks of regions, of few zeros and of noise, and labels of many classes at once."""

from __future__ import annotations

import torch
from bench_types import Inputs, Provider, Workload
from rows_metrics import segmented
from torch import Tensor

import segops

CLASSES = 19


def regions(*shape: int) -> Inputs:
    """A third of the classes as zeros."""
    return {"mask": segmented(shape[0], CLASSES, *shape[1:])[0] % 3 > 0}


def noise(zeros: float, *shape: int) -> Inputs:
    return {"mask": torch.rand(shape, generator=torch.Generator().manual_seed(0)) >= zeros}


def parcels(*shape: int) -> Inputs:
    """Labels from 1 on: every pixel gets its distance to another region."""
    return {"mask": segmented(shape[0], CLASSES, *shape[1:])[0] + 1, "multilabel": True}


def by_scipy(mask: Tensor, multilabel: bool = False) -> Tensor:
    from scipy.ndimage import distance_transform_edt

    if not multilabel:
        return torch.stack([torch.from_numpy(distance_transform_edt(image.numpy())) for image in mask])
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for label in mask.unique().tolist():
        out += by_scipy(mask == label)
    return out


def exact(inputs: Inputs) -> Tensor:
    """The same on a GPU, where there is no SciPy."""
    if inputs["mask"].is_cuda:
        with segops.backend("reference"):
            return segops.distance_transform(**inputs)
    return by_scipy(**inputs)


def read_and_written(inputs: Inputs) -> int:
    return inputs["mask"].numel() * (inputs["mask"].element_size() + 4)


def row(name: str, make) -> Workload:
    return Workload("distance_transform", name, make, read_and_written, exact)


WORKLOADS = (
    row("regions_4x512x1024", lambda: regions(4, 512, 1024)),
    row("few_zeros_4x512x1024", lambda: noise(1e-5, 4, 512, 1024)),
    row("noise_4x512x1024", lambda: noise(0.5, 4, 512, 1024)),
    row("19_labels_1x512x1024", lambda: parcels(1, 512, 1024)),
)
PROVIDERS = (
    Provider("segops", "distance_transform", lambda x: lambda: segops.distance_transform(**x), tolerance=1e-7),
    Provider("scipy", "distance_transform", lambda x: lambda: by_scipy(**x), "scipy", single=True, tolerance=0),
)
