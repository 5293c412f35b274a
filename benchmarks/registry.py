"""What is measured: workloads (an operator on inputs of the size that papers use) and providers (who computes it).

The rows are in rows_<family>.py, which say what they measure: dense_crf, mean_field, permutohedral_filter,
gaussian_filter_exact and dense_crf_features in rows_crf; lovasz_softmax, lovasz_hinge and lovasz_grad in rows_lovasz;
point_sample and point_scatter in rows_points; topk_uncertain_grid, subdivide and uncertain_points in rows_uncertain;
criss_cross_attention in rows_criss_cross; em_attention and encoding in rows_em; nonlocal_attention in rows_nonlocal;
nonlocal_concatenation in rows_concatenation; atrous_conv2d and aspp in rows_atrous; conv_crf in rows_conv_crf;
dynamic_depthwise_conv2d in rows_depthwise; interlaced_attention in rows_interlaced; psa_collect, psa_distribute
and psa_mask in rows_psa; pyramid_pool and asymmetric_nonlocal in rows_pyramid; cross_entropy_dice_focal in rows_losses;
upsample_cross_entropy and upsample_argmax in rows_upsample.
"""

from __future__ import annotations

import rows_atrous
import rows_concatenation
import rows_conv_crf
import rows_crf
import rows_criss_cross
import rows_depthwise
import rows_em
import rows_interlaced
import rows_losses
import rows_lovasz
import rows_nonlocal
import rows_points
import rows_psa
import rows_pyramid
import rows_uncertain
import rows_upsample
from bench_types import Inputs, Provider, Workload, error, tensors

__all__ = ["PROVIDERS", "WORKLOADS", "Inputs", "Provider", "Workload", "error", "tensors"]

FAMILIES = (
    rows_atrous,
    rows_concatenation,
    rows_conv_crf,
    rows_crf,
    rows_criss_cross,
    rows_depthwise,
    rows_em,
    rows_interlaced,
    rows_losses,
    rows_lovasz,
    rows_nonlocal,
    rows_points,
    rows_psa,
    rows_pyramid,
    rows_uncertain,
    rows_upsample,
)
WORKLOADS: tuple[Workload, ...] = tuple(w for family in FAMILIES for w in family.WORKLOADS)
PROVIDERS: tuple[Provider, ...] = tuple(p for family in FAMILIES for p in family.PROVIDERS)
