"""Rows of PointRend's selection: the most uncertain cells, a step of subdivision, and the points of training."""

from __future__ import annotations

import torch
from bench_types import Inputs, Provider, Workload, doubled
from torch import Tensor

import segops

segops.ops  # noqa: B018  registers the operators, which are called directly


def logit_map(*shape: int) -> Tensor:
    """Logits (N, C, H, W) as a network gives them: smooth regions, noise on top."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(*shape[:2], 12, 16, generator=g)
    logits = 3 * torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic")
    return logits + torch.randn(shape, generator=g)


def logits_once(inputs: Inputs) -> int:
    return inputs["logits"].numel() * 4


def drawn_points(count: int, *shape: int) -> Inputs:
    """What PointRend's training draws for ``count`` points."""
    g = torch.Generator().manual_seed(0)
    important = 3 * count // 4
    candidates, others = (torch.rand(shape[0], n, 2, generator=g) for n in (3 * count, count - important))
    return {"logits": logit_map(*shape), "candidates": candidates, "others": others, "important": important}


def uncertainty(logits: Tensor) -> Tensor:
    """(N, C, ...) to (N, 1, ...) as detectron2's PointRend has it: top2 - top1, or -|logit|."""
    if logits.shape[1] == 1:
        return -logits.abs()
    largest = logits.topk(2, dim=1).values
    return largest[:, 1:] - largest[:, :1]


def pointrend_cells(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """detectron2's recipe for the most uncertain cells: indices and centres."""
    height, width = logits.shape[2:]
    indices = uncertainty(logits).flatten(1).topk(k, dim=1).indices
    points = torch.stack([(indices % width + 0.5) / width, (indices // width + 0.5) / height], -1)
    return indices, points


def pointrend_step(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """detectron2's recipe for a step of subdivision, up to the point head."""
    larger = torch.nn.functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    return larger, *pointrend_cells(larger, k)


def sample_at(x: Tensor, points: Tensor) -> Tensor:
    """detectron2's point_sample of (N, C, H, W) at (N, P, 2)."""
    return torch.nn.functional.grid_sample(x, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def pointrend_points(logits: Tensor, candidates: Tensor, others: Tensor, important: int) -> Tensor:
    """detectron2's recipe for the points of training, after the draws."""
    chosen = uncertainty(sample_at(logits, candidates))[:, 0].topk(important, dim=1).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), others], 1)


def margins_of_cells(inputs: Inputs, result: tuple[Tensor, Tensor]) -> Tensor:
    """What is compared of places: their margins, since equal ones come in any order."""
    return uncertainty(inputs["logits"].double()).flatten(1).gather(1, result[0])


def margins_of_step(inputs: Inputs, result: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    larger, indices, _ = result
    return [larger, uncertainty(larger.double()).flatten(1).gather(1, indices)]


def margins_of_points(inputs: Inputs, result: Tensor) -> Tensor:
    return uncertainty(sample_at(inputs["logits"].double(), result.double()))


WORKLOADS = (
    Workload(
        "topk_uncertain_grid",
        "1x19x512x1024_8192_points",
        lambda: {"logits": logit_map(1, 19, 512, 1024), "k": 8192},
        logits_once,
        lambda inputs: margins_of_cells(inputs, pointrend_cells(**doubled(inputs))),
        margins_of_cells,
    ),
    Workload(
        "subdivide",
        "step_from_1x19x256x512_8192_points",
        lambda: {"logits": logit_map(1, 19, 256, 512), "k": 8192},
        lambda inputs: 5 * logits_once(inputs),
        lambda inputs: margins_of_step(inputs, pointrend_step(**doubled(inputs))),
        margins_of_step,
    ),
    *(
        Workload(
            "uncertain_points",
            f"{'x'.join(map(str, shape))}_2048_points",
            lambda shape=shape: drawn_points(2048, *shape),
            logits_once,
            lambda inputs: margins_of_points(inputs, pointrend_points(**doubled(inputs))),
            margins_of_points,
        )
        for shape in ((4, 19, 200, 304), (2, 150, 128, 128))
    ),
)

PROVIDERS = (
    Provider(
        "segops",
        "topk_uncertain_grid",
        lambda inputs: lambda: segops.topk_uncertain_grid(inputs["logits"], inputs["k"]),
    ),
    Provider("detectron2_recipe", "topk_uncertain_grid", lambda inputs: lambda: pointrend_cells(**inputs)),
    Provider("segops", "subdivide", lambda inputs: lambda: torch.ops.segops.subdivide(inputs["logits"], inputs["k"])),
    Provider("detectron2_recipe", "subdivide", lambda inputs: lambda: pointrend_step(**inputs)),
    Provider("segops", "uncertain_points", lambda inputs: lambda: torch.ops.segops.uncertain_points(*inputs.values())),
    Provider("detectron2_recipe", "uncertain_points", lambda inputs: lambda: pointrend_points(**inputs)),
)
