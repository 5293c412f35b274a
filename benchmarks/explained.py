"""Why segops loses where it does, as far as it is known: shown beside the rows in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

LAUNCHES = "nearly all of it is Python and launches; the device itself works less than for the peer"
FLOAT32 = (
    "rows of an older kernel, little more than float32 matrix products, which wrote as many bytes of partial sums as x "
    "has, and ran a dozen small operators of torch around each pass"
)

EXPLAINED: dict[tuple[str, str], str] = {
    ("gpu", "criss_cross_attention"): "rows of an older kernel, without the copies with channels side by side that it "
    "has since: neighbours in a column lay a row apart in memory, and each load of one cost a sector",
    ("gpu", "em_attention"): FLOAT32,
    ("gpu", "encoding"): FLOAT32,
    ("gpu", "point_sample"): LAUNCHES,
    ("gpu", "point_scatter"): LAUNCHES + "; it also says which of equal indices wins",
    ("gpu", "uncertain_points"): LAUNCHES,
    ("cpu", "atrous_conv2d"): "forward, both are oneDNN's convolution, and what differs is a copy to channels_last",
    ("cpu", "aspp"): "forward, both are oneDNN's convolution, and what differs is a copy to channels_last",
    ("cpu", "aspp_sum"): "forward, 21 results are no whole vectors, for which oneDNN has narrower kernels; with "
    "gradients segops is the faster",
    ("cpu", "dynamic_depthwise_conv2d"): "at rate 6 on 33 x 33 oneDNN has a kernel of its own, which at larger "
    "rates it gives up; with gradients segops is the faster",
    ("cpu", "interlaced_attention"): "one round each, and both vary; the row with AVX2 is of an older kernel, which "
    "moved members one by one",
    ("cpu", "psa_collect"): "at 30 x 30 the matrix that peers write has 3 MB and stays in a cache",
    ("cpu", "nonlocal_attention"): "one round each, and both are at 91 and 95 % of the rate of plain products",
    ("cpu", "nonlocal_attention_dot_product"): "both are the same matrix products of torch",
    ("cpu", "accelerate"): "forward, oneDNN skips padding in channels_last too, and most of the model has no holes; "
    "with gradients segops is the faster",
}


def explanation(result: dict[str, Any], op: str) -> str:
    return EXPLAINED.get(("gpu" if result.get("gpu") else "cpu", op), "not known yet")
