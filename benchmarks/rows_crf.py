"""Rows of the dense CRF and its filters."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from bench_types import Inputs, Provider, Workload, doubled, tensors_once
from torch import Tensor

import segops

SIGMA_XY, SIGMA_RGB, WEIGHTS = 80.0, 13.0, (3.0, 10.0)


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


def exact_crf(inputs: Inputs) -> Tensor:
    return segops_crf({**inputs, "logits": inputs["logits"].double()})()


def exact_features(inputs: Inputs) -> Tensor:
    return torch.ops.segops.dense_crf_features(inputs["image"].double(), [SIGMA_XY] * 2, [SIGMA_RGB] * 3)


def filtered(name: str) -> Callable[[Inputs], Tensor]:
    return lambda inputs: getattr(segops, name)(inputs["values"], inputs["features"])


VOC = ("coffee",)
WORKLOADS = (
    Workload(
        "dense_crf",
        "500x375_21_labels",
        lambda: scene(VOC, 375, 500, 21, 10),
        crf_bytes,
        exact_crf,
        size=375 * 500,
    ),
    Workload("dense_crf", "1024x512_19_labels", lambda: scene(("astronaut",), 512, 1024, 19, 5), crf_bytes, exact_crf),
    Workload(
        "dense_crf",
        "500x375_21_labels_batch_4",
        lambda: scene(("coffee", "chelsea", "astronaut", "rocket"), 375, 500, 21, 10),
        crf_bytes,
        exact_crf,
        late=True,
    ),
    Workload("mean_field", "build_500x375_21_labels", lambda: scene(VOC, 375, 500, 21, 0), crf_bytes, exact_crf),
    Workload(
        "permutohedral_filter",
        "320x240_21_channels",
        lambda: bilateral(240, 320, 21),
        tensors_once,
        lambda inputs: filtered("permutohedral_filter")(doubled(inputs)),
        late=True,
    ),
    Workload(
        "gaussian_filter_exact",
        "160x120_21_channels",
        lambda: bilateral(120, 160, 21),
        tensors_once,
        lambda inputs: filtered("gaussian_filter_exact")(doubled(inputs)),
        late=True,
    ),
    Workload("dense_crf_features", "500x375", lambda: bilateral(375, 500, 1), tensors_once, exact_features),
)
SWEEPS = tuple(
    Workload(
        "dense_crf",
        f"{width}x{height}_21_labels",
        partial(scene, VOC, height, width, 21, 10),
        crf_bytes,
        exact_crf,
        size=height * width,
        late=width == 1000,
    )
    for height, width in ((94, 125), (188, 250), (750, 1000))
) + (
    Workload(
        "gaussian_filter_exact",
        "80x60_21_channels",
        lambda: bilateral(60, 80, 21),
        tensors_once,
        lambda inputs: filtered("gaussian_filter_exact")(doubled(inputs)),
        size=60 * 80,
    ),
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


PEER = "pydensecrf.densecrf"
PROVIDERS = (
    Provider("segops", "dense_crf", segops_crf),
    Provider("pydensecrf2", "dense_crf", numpy_crf(PEER), needs="pydensecrf", single=True, cpu_only=True),
    Provider(
        "segops_numpy", "dense_crf", numpy_crf("segops.compat.pydensecrf.densecrf"), "segops._host", cpu_only=True
    ),
    Provider("segops", "mean_field", segops_crf),
    Provider("pydensecrf2", "mean_field", numpy_crf(PEER), needs="pydensecrf", single=True, cpu_only=True),
    Provider(
        "segops",
        "permutohedral_filter",
        lambda inputs: lambda: filtered("permutohedral_filter")(inputs),
    ),
    Provider(
        "segops",
        "gaussian_filter_exact",
        lambda inputs: lambda: filtered("gaussian_filter_exact")(inputs),
    ),
    Provider("eager", "gaussian_filter_exact", eager_exact),
    Provider(
        "segops",
        "dense_crf_features",
        lambda inputs: lambda: torch.ops.segops.dense_crf_features(inputs["image"], [SIGMA_XY] * 2, [SIGMA_RGB] * 3),
    ),
    Provider("eager", "dense_crf_features", eager_features),
)
