"""One table of small inputs for every registered operator: ordinary, odd and empty ones.

Inputs are made in float64 from a fixed seed, then cast, so that every dtype sees the same numbers. Features are random:
on a grid, points may lie exactly on a face of the lattice, where float32 and float64 rightly choose different vertices
(the golden cases cover grids).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import inputs


@dataclass(frozen=True)
class Case:
    """Arguments of ``torch.ops.segops.<op>``; ``gradients`` are the positions of those that get one."""

    op: str
    name: str
    make: Callable[[torch.Generator], tuple]
    gradients: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def args(self, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu") -> tuple:
        """Fresh arguments: floating tensors in ``dtype`` on ``device``."""
        generator = torch.Generator().manual_seed(sum(map(ord, str(self))))

        def cast(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
            return [cast(y) for y in x] if isinstance(x, list) and x and isinstance(x[0], Tensor) else x

        return tuple(map(cast, self.make(generator)))


_FILTERED = {  # batch, channels, features, points, features shared by the batch
    "plane": (2, 3, 2, 67, False),
    "colour": (1, 21, 5, 50, False),
    "shared": (3, 1, 3, 33, True),
    "wide": (1, 40, 1, 19, False),
    "one_point": (1, 2, 4, 1, False),
    "empty_batch": (0, 2, 2, 10, False),
}

_SOFTMAX_LOSSES = {  # batch, channels, points, weights; classes, present, per image, ignore_index, from logits
    "batch": (2, 5, 67, False, [0, 1, 2, 3, 4], True, False, 255, True),
    "images": (3, 4, 35, True, [0, 1, 2, 3], True, True, 255, True),
    "all": (2, 21, 50, False, list(range(21)), False, False, 255, True),
    "list": (2, 5, 33, True, [3, 1], False, True, 255, True),
    "probabilities": (2, 3, 33, False, [0, 1, 2], True, False, 255, False),
    "binary": (2, 1, 41, False, [0], True, True, 255, True),
    "one_pixel": (1, 3, 1, False, [0, 1, 2], True, False, 255, True),
    "empty_batch": (0, 3, 10, False, [0, 1, 2], True, True, 255, True),
}

_PIXEL_SUMS = {  # batch, channels, points, gamma
    "plain": (2, 5, 67, 2.0),
    "wide": (1, 19, 150, 1.5),
    "one_pixel": (1, 3, 1, 1.0),
    "empty_batch": (0, 3, 10, 2.0),
}

_UPSAMPLED = {  # batch, channels, cells, pixels, weights; align_corners, ignore_index, smoothing
    "plain": (2, 5, (2, 3), (5, 11), True, False, 255, 0.1),
    "wide": (1, 19, (2, 3), (6, 21), False, True, 255, 0.0),
    "smaller": (1, 3, (7, 9), (3, 4), False, False, 255, 0.0),
    "one_cell": (2, 2, (1, 1), (3, 5), True, False, 255, 0.2),
    "empty_batch": (0, 3, (4, 5), (8, 10), False, False, 255, 0.0),
}

_LABELLED = {  # batch, channels, cells; pixels, align_corners, narrow
    "plain": (2, 5, (2, 3), 5, 11, False, True),
    "wide": (1, 20, (2, 19), 5, 40, True, False),
    "smaller": (1, 3, (7, 9), 3, 4, False, True),
    "one_cell": (2, 2, (1, 1), 3, 5, False, True),
    "empty_batch": (0, 3, (4, 5), 8, 10, False, True),
}

_SAMPLED = {
    "zeros": inputs.point_sets(2, 37, (3, 7, 11), mode="bilinear", padding="zeros", align=False),
    "pyramid": inputs.point_sets(2, 20, (9, 6, 5), (2, 3, 4), mode="bilinear", padding="border", align=True),
    "reflection": inputs.point_sets(1, 70, (10, 4, 9), mode="bilinear", padding="reflection", align=False),
    "nearest": inputs.point_sets(1, 33, (9, 5, 8), mode="nearest", padding="zeros", align=False),
    "one_cell": inputs.point_sets(2, 9, (8, 1, 1), mode="bilinear", padding="zeros", align=False),
    "empty_points": inputs.point_sets(2, 0, (3, 4, 5), mode="bilinear", padding="zeros", align=False),
    "empty_batch": inputs.point_sets(0, 9, (3, 4, 5), mode="bilinear", padding="zeros", align=False),
}

_SCATTERED = {
    "map": (2, 3, 5, 7, 20),
    "one_cell": (1, 2, 1, 1, 3),
    "empty_points": (2, 3, 4, 5, 0),
    "empty_batch": (0, 3, 4, 5, 6),
}

_CRISS_CROSSED = {  # batch, dims, channels, height, width
    "rectangle": (2, 3, 5, 7, 4),
    "wide": (1, 2, 35, 3, 19),
    "tall": (1, 5, 4, 18, 9),
    "row": (1, 2, 3, 1, 6),
    "column": (1, 2, 3, 6, 1),
    "one_pixel": (2, 2, 3, 1, 1),
    "empty_batch": (0, 2, 3, 4, 5),
}

_NONLOCAL = {  # batch, dims, channels, queries, keys, scale
    "map": (2, 5, 7, 20, 20, 0.5),
    "blocks": (1, 3, 5, 100, 40, 1.0),
    "deep": (1, 40, 3, 9, 17, 0.3),
    "pooled": (2, 4, 10, 33, 6, -0.7),
    "one_key": (2, 3, 4, 9, 1, 1.0),
    "one_query": (1, 3, 4, 1, 50, 1.0),
    "two_blocks": (1, 133, 3, 35, 201, 0.1),
    "empty_batch": (0, 3, 4, 9, 5, 1.0),
}

_CONCATENATED = {  # batch, channels, queries, keys
    "plain": (2, 5, 40, 33),
    "wide": (1, 35, 130, 97),
    "one_key": (2, 3, 7, 1),
    "one_query": (1, 17, 1, 9),
    "empty_batch": (0, 3, 4, 5),
}

_PYRAMIDS = {  # batch, channels, height, width, rows and columns of the levels
    "published": (2, 3, 17, 13, [1, 3, 6, 8], [1, 3, 6, 8]),
    "uneven": (1, 5, 9, 35, [2, 1], [5, 4]),
    "more_bins_than_pixels": (1, 2, 3, 2, [7, 1, 2], [5, 3, 2]),
    "many_bins": (1, 2, 40, 33, [40, 3], [33, 2]),
    "one_pixel": (2, 3, 1, 1, [1, 3], [1, 3]),
    "empty_batch": (0, 3, 4, 5, [1, 2], [1, 2]),
}

_ATTENDED = {  # mode, batch, channels, height, width, mask, softmax
    "over_complete": ("collect", 2, 5, 4, 6, (7, 11), True),
    "distribute": ("distribute", 1, 3, 9, 5, (17, 9), True),
    "small": ("collect", 2, 37, 12, 5, (3, 5), True),
    "small_distribute": ("distribute", 1, 4, 11, 7, (5, 3), True),
    "without_softmax": ("collect", 1, 3, 11, 9, (5, 3), False),
    "distribute_without_softmax": ("distribute", 2, 4, 3, 4, (9, 11), False),
    "compact": ("collect", 1, 4, 5, 6, None, True),
    "compact_distribute": ("distribute", 2, 3, 4, 3, None, True),
    "row": ("collect", 1, 2, 1, 7, (1, 13), True),
    "column": ("distribute", 1, 2, 6, 1, (5, 1), True),
    "wide": ("distribute", 1, 100, 11, 10, (21, 19), True),  # several tiles of positions and of channels
    "empty_batch": ("collect", 0, 3, 4, 5, (7, 9), True),
}

_MASKED = {  # mode, batch, height, width, mask
    "over_complete": ("collect", 2, 4, 6, (7, 11)),
    "distribute": ("distribute", 1, 9, 5, (17, 9)),
    "small": ("collect", 1, 12, 11, (3, 5)),
    "over": ("distribute", 1, 3, 4, (9, 11)),
    "one_position": ("collect", 1, 1, 1, (3, 5)),
    "empty_batch": ("collect", 0, 4, 5, (7, 9)),
}

_INTERLACED = {  # batch, dims, channels, height and width; block, relation, scale
    "lattices": (2, 3, 5, (4, 6), [2, 3], "global", 0.6),
    "ragged_lattices": (1, 2, 3, (3, 95), [2, 10], "global", -0.5),
    "ragged_blocks": (1, 33, 4, (5, 13), [4, 8], "local", 0.2),
    "one_block": (2, 2, 3, (4, 3), [8, 16], "local", 1.0),
    "one_pixel_each": (1, 2, 3, (4, 3), [8, 16], "global", 1.0),
    "empty_batch": (0, 2, 3, (4, 5), [8, 8], "global", 1.0),
}

_ATROUS = {
    "same": inputs.Atrous((2, 5, 9, 12), (7, 5, 3, 3), (3, 2), (3, 2)),
    "rate_beyond_the_map": inputs.Atrous((1, 3, 5, 6), (4, 3, 3, 3), (7, 4), (7, 4)),
    "groups": inputs.Atrous((1, 6, 7, 7), (4, 3, 3, 3), (2, 2), (2, 2), groups=2, bias=False),
    "wide": inputs.Atrous((1, 37, 6, 21), (35, 37, 3, 3), (2, 6), (2, 6)),
    "valid": inputs.Atrous((2, 3, 9, 8), (2, 3, 2, 3), (2, 3), (0, 0)),
    "more_padding": inputs.Atrous((1, 2, 4, 5), (3, 2, 3, 2), (2, 1), (5, 3)),
    "stride": inputs.Atrous((2, 4, 9, 11), (4, 2, 3, 3), (2, 3), (2, 3), stride=(2, 3), groups=2),
    "one_tap": inputs.Atrous((2, 6, 4, 5), (5, 6, 1, 1), (1, 1), (0, 0)),
    "dense": inputs.Atrous((2, 5, 9, 12), (7, 5, 3, 3), (3, 2), (3, 2), method="dense"),
    "empty_batch": inputs.Atrous((0, 5, 6, 7), (4, 5, 3, 3), (2, 2), (2, 2)),
}

_ASPPS = {
    "branches": inputs.Aspp((2, 5, 9, 12), ((3, 1, 1, 1), (4, 3, 3, 2), (2, 3, 5, 4))),
    "sum": inputs.Aspp((2, 5, 9, 8), ((6, 3, 3, 2), (6, 1, 1, 1), (6, 3, 3, 9)), sum=True),
    "wide": inputs.Aspp((1, 33, 5, 17), ((35, 3, 3, 3), (40, 3, 3, 6))),
    "dense": inputs.Aspp((2, 5, 9, 12), ((3, 1, 1, 1), (4, 3, 3, 2)), method="dense"),
    "empty_batch": inputs.Aspp((0, 4, 5, 6), ((3, 3, 3, 2), (3, 3, 3, 4))),
}

_DEPTHWISE = {  # batch, channels, map, kernel, dilation, kernels shared by the batch
    "each": (2, 3, (9, 21), (3, 3), (2, 3), False),
    "shared": (3, 5, (18, 17), (3, 3), (6, 6), True),
    "wide": (1, 5, (5, 35), (5, 7), (1, 2), True),
    "beyond": (2, 2, (4, 6), (3, 5), (9, 4), False),
    "row": (2, 3, (1, 33), (1, 3), (1, 20), False),
    "one_pixel": (1, 2, (1, 1), (3, 3), (1, 1), True),
    "empty_batch": (0, 3, (4, 5), (3, 3), (1, 1), True),
}

_WINDOWS = {  # batch, channels, colours, map, window
    "photo": (2, 3, 3, (6, 9), (3, 5)),
    "tiles": (1, 9, 2, (10, 70), (3, 3)),
    "wide": (1, 40, 1, (5, 7), (3, 3)),
    "beyond": (1, 2, 3, (3, 4), (7, 9)),
    "no_colours": (2, 3, 0, (6, 5), (3, 5)),
    "one_pixel": (1, 2, 3, (1, 1), (3, 3)),
    "empty_batch": (0, 3, 3, (4, 5), (3, 3)),
}

_COUNTED = {
    "labels": inputs.counted(5, torch.int64, 255, 2, 67),
    "logits": inputs.counted(19, torch.int64, 255, 2, 150, logits=True),
    "bytes": inputs.counted(3, torch.uint8, 255, 3, 40),
    "short": inputs.counted(2, torch.int16, None, 2, 33),
    "more_than_a_tile": inputs.counted(70, torch.int32, 255, 1, 90),
    "one_pixel": inputs.counted(3, torch.int64, None, 1, 1, logits=True),
    "empty_batch": inputs.counted(4, torch.int64, 255, 0, 9),
}

_PARCELLED = {
    "mask": inputs.parcelled(2, torch.uint8, 2, 9, 13),
    "labels": inputs.parcelled(4, torch.int64, 1, 12, 21),
    "tiles": inputs.parcelled(2, torch.int32, 1, 18, 34),
    "row": inputs.parcelled(3, torch.int16, 2, 1, 33),
    "column": inputs.parcelled(2, torch.uint8, 1, 19, 1),
    "empty_batch": inputs.parcelled(2, torch.uint8, 0, 4, 5),
}

_UPDATES = {  # batch, labels, map, a weight for each label, blur, softmax, means
    "means": (1, 3, (5, 7), False, 2, True, True),
    "marginals": (1, 5, (4, 70), True, 3, True, False),
    "first": (2, 4, (5, 7), True, 2, False, True),
    "logits": (1, 3, (7, 9), False, 4, False, False),
    "pixels": (1, 2, (3, 67), False, 1, True, True),
    "empty_batch": (0, 3, (4, 5), False, 2, True, True),
}

CASES: tuple[Case, ...] = (
    *(Case("aspp", name, p.forward, (0, 1, 2)) for name, p in _ASPPS.items()),
    *(Case("aspp_backward_input", name, p.backward_input) for name, p in _ASPPS.items()),
    *(Case("aspp_backward_weight", name, p.backward_weight) for name, p in _ASPPS.items()),
    *(Case("atrous_conv2d", name, c.forward, (0, 1, 2) if c.bias else (0, 1)) for name, c in _ATROUS.items()),
    *(Case("atrous_conv2d_backward_input", name, c.backward_input, (0, 1)) for name, c in _ATROUS.items()),
    *(Case("atrous_conv2d_backward_weight", name, c.backward_weight, (0, 1)) for name, c in _ATROUS.items()),
    *(Case("confusion_matrix", name, make) for name, make in _COUNTED.items()),
    *(Case("distance_transform", name, make) for name, make in _PARCELLED.items()),
    *(
        Case(
            "conv_crf_message",
            name,
            inputs.window(*sizes),
            (0, 1, 2, 3) if name not in ("one_pixel", "no_colours") else (0, 2, 3),
        )
        for name, sizes in _WINDOWS.items()
    ),
    *(Case("conv_crf_message_backward", name, inputs.window(*sizes, True)) for name, sizes in _WINDOWS.items()),
    *(Case("conv_crf_update", name, inputs.update(*sizes), (0, 1, 2)) for name, sizes in _UPDATES.items()),
    *(Case("conv_crf_update_backward", name, inputs.update(*sizes, True)) for name, sizes in _UPDATES.items()),
    *(Case("dynamic_depthwise_conv2d", name, inputs.depthwise(*sizes), (0, 1)) for name, sizes in _DEPTHWISE.items()),
    *(
        Case("dynamic_depthwise_conv2d_backward", name, inputs.depthwise_backward(*sizes), (0, 1))
        for name, sizes in _DEPTHWISE.items()
    ),
    *(
        Case("criss_cross_attention", name, inputs.criss_cross(*sizes), (2,) if name == "one_pixel" else (0, 1, 2))
        for name, sizes in _CRISS_CROSSED.items()
    ),
    *(
        Case("criss_cross_attention_backward", name, inputs.criss_cross_backward(*sizes))
        for name, sizes in _CRISS_CROSSED.items()
        if name != "one_pixel"
    ),
    *(Case("psa", name, inputs.psa(*sizes), (0, 1)) for name, sizes in _ATTENDED.items()),
    *(Case("psa_backward", name, inputs.psa_backward(*sizes)) for name, sizes in _ATTENDED.items()),
    *(Case("psa_mask", name, inputs.psa_mask(*sizes), (0,)) for name, sizes in _MASKED.items()),
    *(Case("psa_mask_backward", name, inputs.psa_mask(*sizes, True)) for name, sizes in _MASKED.items()),
    *(
        Case("interlaced_attention", name, inputs.interlaced(*sizes), (2,) if name == "one_pixel_each" else (0, 1, 2))
        for name, sizes in _INTERLACED.items()
    ),
    *(
        Case("interlaced_attention_backward", name, inputs.interlaced(*_INTERLACED[name], backward=True))
        for name in ("lattices", "ragged_blocks", "empty_batch")
    ),
    *(Case("permutohedral_filter", name, inputs.filtered(*sizes, False), (0,)) for name, sizes in _FILTERED.items()),
    *(Case("gaussian_filter_exact", name, inputs.filtered(*sizes), (0, 1)) for name, sizes in _FILTERED.items()),
    Case("permutohedral_filter", "reverse", inputs.filtered(1, 3, 3, 45, False, True), (0,)),
    Case(
        "gaussian_filter_exact_backward",
        "plane",
        lambda g: (inputs.randn(g, 2, 3, 40), inputs.randn(g, 2, 3, 40), inputs.randn(g, 2, 2, 40)),
    ),
    Case(
        "gaussian_filter_exact_backward",
        "shared",
        lambda g: (inputs.randn(g, 2, 5, 31), inputs.randn(g, 2, 5, 31), inputs.randn(g, 1, 3, 31)),
    ),
    Case("mean_field", "potts", inputs.mean_field(2, 4, 61, False, 3, "symmetric", False), (0, 2)),
    Case("mean_field", "matrix", inputs.mean_field(1, 21, 40, True, 2, "symmetric", True), (0, 2)),
    Case("mean_field", "before", inputs.mean_field(2, 3, 35, True, 2, "before", False), (0, 2)),
    Case("mean_field", "after", inputs.mean_field(2, 9, 35, False, 2, "after", True), (0, 2)),
    Case("mean_field", "none", inputs.mean_field(1, 35, 20, False, 1, "none", False), (0, 2)),
    Case("mean_field", "no_iterations", inputs.mean_field(1, 3, 20, False, 0, "symmetric", False), (0,)),
    Case("mean_field", "one_label", inputs.mean_field(1, 1, 20, True, 2, "symmetric", False), (0, 2)),
    Case("mean_field", "one_point", inputs.mean_field(1, 3, 1, False, 2, "symmetric", False), (0, 2)),
    Case("mean_field", "empty_batch", inputs.mean_field(0, 3, 20, False, 2, "symmetric", False)),
    Case("mean_field_backward", "potts", inputs.mean_field_backward(2, 4, 61, False, 3, "symmetric", False)),
    Case("mean_field_backward", "matrix", inputs.mean_field_backward(2, 3, 35, True, 2, "after", True)),
    Case("lovasz_grad", "rows", lambda g: ((torch.rand(3, 37, generator=g) < 0.3).double(),)),
    Case("lovasz_grad", "no_foreground", lambda g: (torch.zeros(2, 5, dtype=torch.float64),)),
    Case("lovasz_grad", "empty_rows", lambda g: (torch.zeros(2, 0, dtype=torch.float64),)),
    *(Case("lovasz_softmax", name, inputs.softmax_loss(*sizes), (0,)) for name, sizes in _SOFTMAX_LOSSES.items()),
    Case("lovasz_softmax_backward", "batch", inputs.with_gradient(1, inputs.softmax_loss(*_SOFTMAX_LOSSES["batch"]))),
    Case("lovasz_softmax_backward", "images", inputs.with_gradient(3, inputs.softmax_loss(*_SOFTMAX_LOSSES["images"]))),
    Case("lovasz_hinge", "images", inputs.hinge_loss(3, 61, True), (0,)),
    Case("lovasz_hinge", "batch", inputs.hinge_loss(2, 130, False), (0,)),
    Case("lovasz_hinge", "one_pixel", inputs.hinge_loss(1, 1, True), (0,)),
    Case("lovasz_hinge", "empty_batch", inputs.hinge_loss(0, 9, True), (0,)),
    Case("lovasz_hinge_backward", "images", inputs.with_gradient(3, inputs.hinge_loss(3, 61, True))),
    Case("lovasz_hinge_backward", "batch", inputs.with_gradient(1, inputs.hinge_loss(2, 130, False))),
    *(Case("segmentation_sums", name, inputs.pixel_sums(*sizes), (0,)) for name, sizes in _PIXEL_SUMS.items()),
    *(Case("segmentation_sums_backward", n, inputs.pixel_sums(*sizes, True)) for n, sizes in _PIXEL_SUMS.items()),
    *(Case("upsample_cross_entropy", name, inputs.upsampled(*sizes), (0,)) for name, sizes in _UPSAMPLED.items()),
    *(Case("upsample_cross_entropy_backward", n, inputs.upsampled_backward(*sizes)) for n, sizes in _UPSAMPLED.items()),
    *(
        Case(
            "upsample_argmax",
            name,
            lambda g, sizes=sizes: (inputs.randn(g, *sizes[:2], *sizes[2]), *sizes[3:]),  # type: ignore[misc]
        )
        for name, sizes in _LABELLED.items()
    ),
    Case("dense_crf_features", "photo", inputs.picture(2, 3, 7, 9, torch.uint8)),
    Case("dense_crf_features", "float", inputs.picture(1, 3, 5, 8, torch.float64), (0,)),
    Case("dense_crf_features", "position_only", inputs.picture(1, 0, 5, 8, torch.uint8)),
    Case("dense_crf_features", "empty_batch", inputs.picture(0, 3, 5, 8, torch.uint8)),
    *(Case("point_sample", name, make, (0, 1)) for name, make in _SAMPLED.items()),
    *(
        Case(f"point_sample_backward_{operator}", f"{wanted}_{name}", inputs.points_backward(make, wanted))
        for operator, kinds in (("input", ("planes", "cells")), ("points", ("points",)))
        for wanted in kinds
        for name, make in _SAMPLED.items()
    ),
    *(Case("point_scatter", name, inputs.scattered(*sizes), (0, 2)) for name, sizes in _SCATTERED.items()),
    *(Case("point_scatter_backward", name, inputs.scattered(*sizes, True)) for name, sizes in _SCATTERED.items()),
    Case("topk_uncertain_grid", "classes", inputs.uncertain(2, 5, 9, 13, 20)),
    Case("topk_uncertain_grid", "mask", inputs.uncertain(3, 1, 7, 40, 33)),
    Case("topk_uncertain_grid", "all_cells", inputs.uncertain(1, 3, 5, 7, 35)),
    Case("topk_uncertain_grid", "blocks", inputs.uncertain(1, 2, 61, 97, 300)),
    Case("topk_uncertain_grid", "no_cells", inputs.uncertain(2, 4, 3, 3, 0)),
    Case("topk_uncertain_grid", "empty_batch", inputs.uncertain(0, 4, 3, 3, 5)),
    Case("subdivide", "classes", inputs.uncertain(2, 5, 6, 9, 20)),
    Case("subdivide", "mask", inputs.uncertain(3, 1, 7, 20, 33)),
    Case("subdivide", "blocks", inputs.uncertain(1, 3, 40, 67, 300)),
    Case("subdivide", "one_cell", inputs.uncertain(1, 4, 1, 1, 4)),
    Case("subdivide", "no_points", inputs.uncertain(2, 4, 1, 5, 0)),
    Case("subdivide", "empty_batch", inputs.uncertain(0, 4, 3, 3, 5)),
    Case("uncertain_points", "classes", inputs.candidates(2, 5, 6, 9, 70, 5, 20)),
    Case("uncertain_points", "mask", inputs.candidates(3, 1, 7, 20, 90, 0, 33)),
    Case("uncertain_points", "one_cell", inputs.candidates(1, 4, 1, 1, 12, 3, 4)),
    Case("uncertain_points", "no_candidates", inputs.candidates(2, 4, 3, 5, 0, 3, 0)),
    Case("uncertain_points", "empty_batch", inputs.candidates(0, 4, 3, 3, 10, 1, 5)),
    Case("em_attention", "shared", inputs.em(2, 12, 107, 5, True, 3, "add"), (0, 1)),
    Case("em_attention", "each", inputs.em(2, 5, 33, 4, False, 2, "clamp"), (0, 1)),
    Case("em_attention", "wide", inputs.em(1, 33, 230, 64, True, 2, "add"), (0, 1)),
    Case("em_attention", "one_basis", inputs.em(1, 3, 9, 1, False, 1, "add"), (0, 1)),
    Case("em_attention", "one_pixel", inputs.em(2, 4, 1, 3, True, 2, "clamp"), (0,)),
    Case("em_attention", "empty_batch", inputs.em(0, 4, 10, 3, True, 2, "add"), (0, 1)),
    Case("em_attention_backward", "shared", inputs.em_backward(2, 12, 107, 5, True, "add")),
    Case("em_attention_backward", "each", inputs.em_backward(1, 7, 40, 17, False, "clamp")),
    *(
        Case("nonlocal_attention", name, inputs.attended(*sizes), (2,) if name == "one_key" else (0, 1, 2))
        for name, sizes in _NONLOCAL.items()
    ),
    *(  # of one key the softmax has no gradient: there is nothing but rounding to compare
        Case("nonlocal_attention_backward", name, inputs.attended_backward(*sizes))
        for name, sizes in _NONLOCAL.items()
        if name != "one_key"
    ),
    *(Case("nonlocal_concatenation", n, inputs.concatenation(*s), (0, 1, 2)) for n, s in _CONCATENATED.items()),
    *(Case("nonlocal_concatenation_backward", n, inputs.concatenation(*s, True)) for n, s in _CONCATENATED.items()),
    *(Case("pyramid_pool", name, inputs.pyramid(*sizes), (0,)) for name, sizes in _PYRAMIDS.items()),
    *(Case("pyramid_pool_backward", name, inputs.pyramid_backward(*sizes), (0,)) for name, sizes in _PYRAMIDS.items()),
    Case("encoding", "plain", inputs.encoding(2, 12, 107, 5), (0, 1, 2)),
    Case("encoding", "wide", inputs.encoding(1, 70, 130, 33), (0, 1, 2)),
    Case("encoding", "one_codeword", inputs.encoding(2, 3, 20, 1), (0, 1)),
    Case("encoding", "one_pixel", inputs.encoding(1, 5, 1, 4), (0, 1, 2)),
    Case("encoding", "empty_batch", inputs.encoding(0, 4, 10, 3), (0, 1, 2)),
    Case("encoding_backward", "plain", inputs.encoding(2, 12, 107, 5, True)),
    Case("encoding_backward", "wide", inputs.encoding(1, 70, 30, 17, True)),
)
