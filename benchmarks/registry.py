"""What is measured: workloads (an operator on inputs of the size that papers use) and providers (who computes it).

A provider's ``prepare(inputs)`` does what is not timed and returns the call that is. The first provider of an operator
that is not segops is the peer that ratios refer to.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import segops

segops.ops  # noqa: B018  registers the operators
Inputs = dict[str, Any]
SIGMA_XY, SIGMA_RGB, WEIGHTS = 80.0, 13.0, (3.0, 10.0)


@dataclass(frozen=True)
class Workload:
    """Inputs of an operator; ``bytes_moved`` is what has to cross the memory bus at the least."""

    op: str
    name: str
    make: Callable[[], Inputs]
    bytes_moved: Callable[[Inputs], int]
    threads: tuple[int, ...] = (1, 2)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


@dataclass(frozen=True)
class Provider:
    """Someone who computes an operator. ``needs`` is the package it takes; ``single`` says that it has one thread."""

    name: str
    op: str
    prepare: Callable[[Inputs], Callable[[], Any]]
    needs: str | None = None
    single: bool = False
    tolerance: float = field(default=1e-3)  # mean absolute difference from float64, relative to the mean

    def missing(self) -> bool:
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


def photo(name: str, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, one of scikit-image's own."""
    import skimage.data
    import skimage.transform

    image = skimage.transform.resize(getattr(skimage.data, name)(), (height, width), anti_aliasing=True)
    return (image * 255).round().astype(np.uint8)


def scene(photos: tuple[str, ...], height: int, width: int, labels: int, iterations: int) -> Inputs:
    """Photographs and logits as a network gives them: smooth regions, noise on top."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(len(photos), labels, 12, 16, generator=g)
    logits = 3 * torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    logits += torch.randn(logits.shape, generator=g)
    image = np.stack([photo(name, height, width) for name in photos])
    return {
        "logits": logits,
        "image": torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(),
        "iterations": iterations,
    }


def crf_bytes(inputs: Inputs) -> int:
    """In and out once; in each iteration every point's unary energies, and 9 corners of 4 + 4 bytes."""
    n, labels, height, width = inputs["logits"].shape
    return n * height * width * 4 * (2 * labels + inputs["iterations"] * (labels + 18))


def bilateral(height: int, width: int, channels: int) -> Inputs:
    image = torch.from_numpy(photo("coffee", height, width)).permute(2, 0, 1)[None]
    features = torch.ops.segops.dense_crf_features(image, [SIGMA_XY] * 2, [SIGMA_RGB] * 3)
    values = torch.rand(1, channels, height * width, generator=torch.Generator().manual_seed(0))
    return {"values": values, "features": features, "image": image}


def tensors_once(inputs: Inputs) -> int:
    return sum(2 * t.numel() * t.element_size() for t in inputs.values() if isinstance(t, Tensor))


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


VOC = ("coffee",)
WORKLOADS = (
    Workload("dense_crf", "500x375_21_labels", lambda: scene(VOC, 375, 500, 21, 10), crf_bytes),
    Workload("dense_crf", "1024x512_19_labels", lambda: scene(("astronaut",), 512, 1024, 19, 5), crf_bytes),
    Workload(
        "dense_crf",
        "500x375_21_labels_batch_4",
        lambda: scene(("coffee", "chelsea", "astronaut", "rocket"), 375, 500, 21, 10),
        crf_bytes,
    ),
    Workload("mean_field", "build_500x375_21_labels", lambda: scene(VOC, 375, 500, 21, 0), crf_bytes),
    Workload("permutohedral_filter", "320x240_21_channels", lambda: bilateral(240, 320, 21), tensors_once),
    Workload("gaussian_filter_exact", "160x120_21_channels", lambda: bilateral(120, 160, 21), tensors_once),
    Workload("dense_crf_features", "500x375", lambda: bilateral(375, 500, 1), tensors_once),
    Workload(
        "topk_uncertain_grid",
        "1x19x512x1024_8192_points",
        lambda: {"logits": logit_map(1, 19, 512, 1024), "k": 8192},
        logits_once,
    ),
    Workload(
        "subdivide",
        "step_from_1x19x256x512_8192_points",
        lambda: {"logits": logit_map(1, 19, 256, 512), "k": 8192},
        lambda inputs: 5 * logits_once(inputs),
    ),
    Workload("uncertain_points", "4x19x200x304_2048", lambda: drawn_points(2048, 4, 19, 200, 304), logits_once),
    Workload("uncertain_points", "2x150x128x128_2048", lambda: drawn_points(2048, 2, 150, 128, 128), logits_once),
)


def segops_crf(inputs: Inputs) -> Callable[[], Tensor]:
    logits, image, iterations = inputs["logits"], inputs["image"], inputs["iterations"]
    return lambda: segops.dense_crf(logits, image, iterations=iterations)


def numpy_crf(module: str) -> Callable[[Inputs], Callable[[], np.ndarray]]:
    """pydensecrf's interface, its own or ours; one image after the other, which is all it offers."""

    def prepare(inputs: Inputs) -> Callable[[], np.ndarray]:
        crf = importlib.import_module(module)
        unary = np.ascontiguousarray((-inputs["logits"].log_softmax(1)).flatten(2).numpy())
        images = np.ascontiguousarray(inputs["image"].permute(0, 2, 3, 1).numpy())
        n, labels, height, width = inputs["logits"].shape

        def one(i: int) -> np.ndarray:
            d = crf.DenseCRF2D(width, height, labels)
            d.setUnaryEnergy(unary[i])
            d.addPairwiseGaussian(sxy=3, compat=WEIGHTS[0])
            d.addPairwiseBilateral(sxy=SIGMA_XY, srgb=SIGMA_RGB, rgbim=images[i], compat=WEIGHTS[1])
            return np.array(d.inference(inputs["iterations"])).reshape(labels, height, width)

        return lambda: np.stack([one(i) for i in range(n)])

    return prepare


def eager_exact(inputs: Inputs) -> Callable[[], Tensor]:
    """A block of rows of the kernel matrix at a time, as one would write it in torch."""
    values, features = inputs["values"], inputs["features"]
    half = 0.5 * features.square().sum(1, keepdim=True)

    def run() -> Tensor:
        out = torch.empty_like(values)
        for begin in range(0, features.shape[2], 1024):
            block = slice(begin, begin + 1024)
            exponent = torch.baddbmm(half[..., block], features.mT, features[..., block], beta=-1)
            out[..., block] = values @ exponent.sub_(half.mT).exp_()
        return out

    return run


def eager_features(inputs: Inputs) -> Callable[[], Tensor]:
    from segops.reference.dense_crf import dense_crf_features

    return lambda: dense_crf_features(inputs["image"], [SIGMA_XY] * 2, [SIGMA_RGB] * 3)


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


PEER = "pydensecrf.densecrf"
PROVIDERS = (
    Provider("segops", "dense_crf", segops_crf),
    Provider("pydensecrf2", "dense_crf", numpy_crf(PEER), needs="pydensecrf", single=True),
    Provider("segops_numpy", "dense_crf", numpy_crf("segops.compat.pydensecrf.densecrf"), needs="segops._host"),
    Provider("segops", "mean_field", segops_crf),
    Provider("pydensecrf2", "mean_field", numpy_crf(PEER), needs="pydensecrf", single=True),
    Provider(
        "segops",
        "permutohedral_filter",
        lambda inputs: lambda: segops.permutohedral_filter(inputs["values"], inputs["features"]),
    ),
    Provider(
        "segops",
        "gaussian_filter_exact",
        lambda inputs: lambda: segops.gaussian_filter_exact(inputs["values"], inputs["features"]),
    ),
    Provider("eager", "gaussian_filter_exact", eager_exact),
    Provider(
        "segops",
        "dense_crf_features",
        lambda inputs: lambda: torch.ops.segops.dense_crf_features(inputs["image"], [SIGMA_XY] * 2, [SIGMA_RGB] * 3),
    ),
    Provider("eager", "dense_crf_features", eager_features),
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


def oracle(workload: Workload, inputs: Inputs) -> Tensor:
    """The answer in float64, which a provider must give before it is timed."""
    if workload.op in ("dense_crf", "mean_field"):
        return segops.dense_crf(inputs["logits"].double(), inputs["image"], iterations=inputs["iterations"])
    if workload.op == "dense_crf_features":
        return torch.ops.segops.dense_crf_features(inputs["image"].double(), [SIGMA_XY] * 2, [SIGMA_RGB] * 3)
    if workload.op == "topk_uncertain_grid":
        return comparable(workload, inputs, segops.topk_uncertain_grid(inputs["logits"].double(), inputs["k"]))
    if workload.op == "subdivide":
        return comparable(workload, inputs, pointrend_step(inputs["logits"].double(), inputs["k"]))
    if workload.op == "uncertain_points":
        wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        return comparable(workload, inputs, pointrend_points(**wide))
    return getattr(segops, workload.op)(inputs["values"].double(), inputs["features"].double())


def comparable(workload: Workload, inputs: Inputs, result: Any) -> Tensor:
    """What of a result is held against the oracle: of places their margins, since equal ones come in any order."""
    if workload.op == "topk_uncertain_grid":
        return -uncertainty(inputs["logits"].double()).flatten(1).gather(1, result[0])
    if workload.op == "subdivide":
        larger, indices, _ = result
        margins = -uncertainty(larger.double()).flatten(1).gather(1, indices)
        return torch.cat([larger.double().flatten(1), margins], 1)
    if workload.op == "uncertain_points":
        return uncertainty(sample_at(inputs["logits"].double(), result.double()))
    return torch.as_tensor(result).double()
