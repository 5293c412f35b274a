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


def with_gradient(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The result of a function and the gradients of its inputs, as one vector: half the sum of squares is the loss."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    gradients = torch.autograd.grad(out, leaves, out.detach())
    return torch.cat([x.detach().flatten() for x in (out, *gradients)])


def em_inputs(gradient: bool) -> Inputs:
    """EMANet's: 512 channels, stride 8 of a crop of 513 pixels, 64 bases."""
    g = torch.Generator().manual_seed(0)
    bases = torch.nn.functional.normalize(torch.randn(1, 512, 64, generator=g), dim=1)
    return {"x": torch.randn(8, 512, 65, 65, generator=g), "bases": bases, "gradient": gradient}


def encoding_inputs(gradient: bool) -> Inputs:
    """EncNet's: 512 channels, stride 8 of a crop of 480 pixels, 32 codewords, initialised as published."""
    g = torch.Generator().manual_seed(0)
    codewords = (2 * torch.rand(32, 512, generator=g) - 1) / (32 * 512) ** 0.5
    x, scale = torch.randn(4, 512, 60, 60, generator=g), -torch.rand(32, generator=g)
    return {"x": x, "codewords": codewords, "scale": scale, "gradient": gradient}


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
    Workload("em_attention", "8x512x65x65_64_bases", lambda: em_inputs(False), tensors_once),
    Workload("em_attention", "8x512x65x65_64_bases_unrolled", lambda: em_inputs(True), tensors_once),
    Workload("encoding", "4x512x60x60_32_codewords", lambda: encoding_inputs(False), tensors_once),
    Workload("encoding", "4x512x60x60_32_codewords_backward", lambda: encoding_inputs(True), tensors_once),
    Workload("dense_crf_features", "500x375", lambda: bilateral(375, 500, 1), tensors_once),
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


def em(function: Callable[..., Any]) -> Callable[[Inputs], Callable[[], Tensor]]:
    """The output of function(x, bases, unrolled), which gives the bases too; or the output and its gradients."""

    def prepare(inputs: Inputs) -> Callable[[], Tensor]:
        x, bases = inputs["x"], inputs["bases"]
        if inputs["gradient"]:
            return lambda: with_gradient(lambda x, bases: function(x, bases, True)[0], x, bases)
        return lambda: function(x, bases, False)[0]

    return prepare


def segops_em(x: Tensor, bases: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    return segops.em_attention(x, bases, unrolled=unrolled)


def eager_em(x: Tensor, bases: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    """EMANet's loop in plain torch."""
    with torch.set_grad_enabled(unrolled):
        n, c, h, w = x.shape
        flat, mu = x.view(n, c, h * w), bases.repeat(n, 1, 1)
        for _ in range(3):
            z = torch.softmax(torch.bmm(flat.mT, mu), 2)
            mu = torch.bmm(flat, z / (1e-6 + z.sum(1, keepdim=True)))
            mu = mu / (1e-6 + mu.norm(dim=1, keepdim=True))
        return torch.bmm(mu, z.mT).view(n, c, h, w), mu


def einsum_em(x: Tensor, bases: Tensor, unrolled: bool) -> tuple[Tensor, Tensor]:
    """mmsegmentation's loop in plain torch."""
    normalize = torch.nn.functional.normalize
    with torch.set_grad_enabled(unrolled):
        flat, mu = x.flatten(2), bases.expand(x.shape[0], -1, -1)
        for _ in range(3):
            z = torch.softmax(torch.einsum("bcn,bck->bnk", flat, mu), 2)
            mu = normalize(torch.einsum("bcn,bnk->bck", flat, normalize(z, dim=1, p=1)), dim=1)
        return torch.einsum("bck,bnk->bcn", mu, z).view(x.shape), mu


def encode(function: Callable[..., Tensor]) -> Callable[[Inputs], Callable[[], Tensor]]:
    def prepare(inputs: Inputs) -> Callable[[], Tensor]:
        tensors = inputs["x"], inputs["codewords"], inputs["scale"]
        return lambda: with_gradient(function, *tensors) if inputs["gradient"] else function(*tensors)

    return prepare


def eager_encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """The published formula, with residuals N x P x K x D."""
    residuals = x.flatten(2).mT[:, :, None] - codewords
    assignment = torch.softmax(scale * residuals.square().sum(3), 2)
    return (assignment[..., None] * residuals).sum(1)


def expanded_encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """By matrix products, |x|^2 - 2 x c + |c|^2: what one would write who knows of the memory."""
    x = x.flatten(2)
    squares = x.square().sum(1)[..., None] - 2 * (x.mT @ codewords.T) + codewords.square().sum(1)
    assignment = torch.softmax(scale * squares, 2)
    return (x @ assignment).mT - assignment.sum(1)[..., None] * codewords


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
    Provider("segops", "em_attention", em(segops_em)),
    Provider("eager", "em_attention", em(eager_em)),
    Provider("einsum", "em_attention", em(einsum_em)),
    Provider("segops", "encoding", encode(segops.encoding)),
    Provider("eager", "encoding", encode(eager_encoding)),
    Provider("expanded", "encoding", encode(expanded_encoding)),
    Provider(
        "segops",
        "dense_crf_features",
        lambda inputs: lambda: torch.ops.segops.dense_crf_features(inputs["image"], [SIGMA_XY] * 2, [SIGMA_RGB] * 3),
    ),
    Provider("eager", "dense_crf_features", eager_features),
)


def oracle(workload: Workload, inputs: Inputs) -> Tensor:
    """The answer in float64, which a provider must give before it is timed."""
    if workload.op in ("dense_crf", "mean_field"):
        return segops.dense_crf(inputs["logits"].double(), inputs["image"], iterations=inputs["iterations"])
    if workload.op == "dense_crf_features":
        return torch.ops.segops.dense_crf_features(inputs["image"].double(), [SIGMA_XY] * 2, [SIGMA_RGB] * 3)
    if workload.op in ("em_attention", "encoding"):
        function = em(eager_em) if workload.op == "em_attention" else encode(expanded_encoding)
        return function({k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()})()
    return getattr(segops, workload.op)(inputs["values"].double(), inputs["features"].double())
