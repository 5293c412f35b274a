"""What is measured: workloads (an operator on inputs of the size that papers use) and providers (who computes it).

The rows are in the files beside this one that are called rows_<family>.py; each says what it measures: dense_crf,
mean_field, permutohedral_filter, gaussian_filter_exact and dense_crf_features in rows_crf; lovasz_softmax, lovasz_hinge
and lovasz_grad in rows_lovasz; cross_entropy_dice_focal, and with it segmentation_sums, in rows_losses;
upsample_cross_entropy and upsample_argmax in rows_upsample; confusion_matrix in rows_metrics; distance_transform in
rows_distance; point_sample and point_scatter in rows_points; topk_uncertain_grid, subdivide and uncertain_points in
rows_uncertain; criss_cross_attention in rows_criss_cross; em_attention and encoding in rows_em; nonlocal_attention in
rows_nonlocal; nonlocal_concatenation in rows_concatenation; interlaced_attention in rows_interlaced; psa_collect,
psa_distribute and psa_mask in rows_psa; pyramid_pool and asymmetric_nonlocal in rows_pyramid; atrous_conv2d and aspp in
rows_atrous; conv_crf in rows_conv_crf; dynamic_depthwise_conv2d in rows_depthwise; accelerate, of whole models, in
rows_accelerate.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from bench_types import Inputs, Provider, Workload, error, tensors

__all__ = ["PROVIDERS", "SWEEPS", "WORKLOADS", "Inputs", "Provider", "Workload", "error", "tensors"]


def families() -> list[ModuleType]:
    """The modules of rows. Of a base revision (see base.py) those are left out whose operators it does not have."""
    modules = []
    for path in sorted(Path(__file__).parent.glob("rows_*.py")):
        try:
            modules.append(importlib.import_module(path.stem))
        except AttributeError:
            if "SEGOPS_BENCH_BASE" not in os.environ:
                raise
    return modules


FAMILIES = families()
WORKLOADS: tuple[Workload, ...] = tuple(w for family in FAMILIES for w in getattr(family, "WORKLOADS", ()))
PROVIDERS: tuple[Provider, ...] = tuple(p for family in FAMILIES for p in getattr(family, "PROVIDERS", ()))
# How cost grows: operators at other sizes, drawn rather than listed; the smallest are what --quick takes.
SWEEPS: tuple[Workload, ...] = tuple(w for family in FAMILIES for w in getattr(family, "SWEEPS", ()))
