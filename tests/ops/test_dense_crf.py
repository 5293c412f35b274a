"""segops.dense_crf: golden cases through the image interface, options, bad input."""

from __future__ import annotations

import math

import golden_crf
import numpy as np
import pytest
import torch

import segops

IMAGES = [n for n in golden_crf.names("crf_pyd_*") if "_gen_" not in n and "only" not in n]


def arguments(name: str) -> dict:
    """A golden case with both kernels as dense_crf wants it; None where it has a compatibility for each kernel."""
    case = golden_crf.crf(name)
    params = case.arrays["params"]
    gaussian, bilateral = params["gaussian"], params["bilateral"]
    if not np.isscalar(gaussian["compat"]):
        return {}
    image = torch.from_numpy(case.arrays["image"]).permute(2, 0, 1)[None]
    return {
        "logits": -torch.from_numpy(case.arrays["unary"])[None],
        "image": image,
        "spatial_sigma": gaussian["sxy"],
        "spatial_weight": gaussian["compat"],
        "bilateral_sigma_xy": bilateral["sxy"],
        "bilateral_sigma_rgb": bilateral["srgb"],
        "bilateral_weight": bilateral["compat"],
        "normalization": params["normalization"],
    }


@pytest.mark.parametrize("name", [n for n in IMAGES if arguments(n)])
def test_equals_pydensecrf(name):
    case = golden_crf.crf(name)
    for iterations in case.iterations:
        q = segops.dense_crf(**arguments(name), iterations=iterations)
        peer = torch.from_numpy(case.arrays[f"Q_it{iterations}"])
        torch.testing.assert_close(q[0].flatten(1), peer, rtol=0, atol=1e-4)


def test_labels_equal_simplecrf():
    arrays = golden_crf.load("crf_simplecrf_64x48_L3")
    image = torch.from_numpy(arrays["image"]).permute(2, 0, 1)[None]
    logits = torch.from_numpy(arrays["prob"]).clamp(0.01, 0.99).log().permute(2, 0, 1)[None]
    for iterations in (1, 5):
        q = segops.dense_crf(logits, image, iterations=iterations, spatial_weight=3.0, bilateral_weight=10.0)
        agreement = (q.argmax(1)[0] == torch.from_numpy(arrays[f"labels_it{iterations}"])).float().mean()
        assert agreement > 0.999


def test_labels_equal_simplecrf_in_three_dimensions():
    arrays = golden_crf.load("crf_simplecrf3d_12x16x20_L2")
    p, volume = arrays["params"], torch.from_numpy(arrays["image"]).float().flatten()
    # The peer takes a (Z, H, W) volume for one of width Z and depth W, so that its positions are those of another
    # shape: its own mistake, copied here to compare the rest.
    depth, height, width = reversed(arrays["image"].shape[:3])
    z, y, x = (
        i.flatten() for i in torch.meshgrid(*(torch.arange(float(n)) for n in (depth, height, width)), indexing="ij")
    )
    spatial = [x / p["PosRStd"], y / p["PosCStd"], z / p["PosZStd"]]
    bilateral = [
        x / p["BilateralRStd"],
        y / p["BilateralCStd"],
        z / p["BilateralZStd"],
        volume / p["BilateralModsStds"][0],
    ]
    features = [torch.stack(f)[None] for f in (spatial, bilateral)]
    logits = torch.from_numpy(arrays["prob"]).log().reshape(1, -1, 2).mT
    q = segops.mean_field(logits, features, [p["PosW"], p["BilateralW"]], iterations=int(p["MaxIterations"]))
    agreement = (q.argmax(1)[0] == torch.from_numpy(arrays["labels"]).flatten()).float().mean()
    assert agreement > 0.999


def scene(height=24, width=31, labels=4, batch=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, height, width), generator=g, dtype=torch.uint8)
    return torch.randn(batch, labels, height, width, generator=g, dtype=dtype), image


def test_a_batch_is_its_images():
    logits, image = scene()
    q = segops.dense_crf(logits, image)
    for n in range(2):
        torch.testing.assert_close(
            q[n : n + 1], segops.dense_crf(logits[n : n + 1], image[n : n + 1]), rtol=1e-5, atol=1e-6
        )


def test_image_dtypes_and_layouts_are_one():
    logits, image = scene()
    q = segops.dense_crf(logits, image)
    for same in (image.float(), image.half(), image.contiguous(memory_format=torch.channels_last), image.double()):
        torch.testing.assert_close(segops.dense_crf(logits, same), q, rtol=1e-4, atol=1e-5)
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(segops.dense_crf(channels_last, image), q)
    scaled = segops.dense_crf(logits, image.double() / 255, bilateral_sigma_rgb=13 / 255)
    torch.testing.assert_close(scaled, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels(channels):
    logits, _ = scene(10, 12, batch=1)
    image = torch.rand(1, channels, 10, 12)
    q = segops.dense_crf(logits, image, bilateral_sigma_rgb=[0.1 + 0.1 * c for c in range(channels)])
    torch.testing.assert_close(q.sum(1), torch.ones(1, 10, 12))


@pytest.mark.parametrize("algorithm", ["lattice", "exact"])
@pytest.mark.parametrize(("height", "width", "labels"), [(1, 1, 3), (1, 7, 2), (9, 1, 1), (5, 5, 30)])
def test_odd_sizes(height, width, labels, algorithm):
    logits, image = scene(height, width, labels)
    q = segops.dense_crf(logits, image, algorithm=algorithm)
    torch.testing.assert_close(q.sum(1), torch.ones(2, height, width))


def test_a_constant_image_and_no_iterations():
    logits, image = scene()
    q = segops.dense_crf(logits, torch.full_like(image, 200))
    assert torch.isfinite(q).all()
    torch.testing.assert_close(segops.dense_crf(logits, image, iterations=0), logits.softmax(1))
    assert segops.dense_crf(logits[:0], image[:0]).shape == (0, 4, 24, 31)
    assert segops.dense_crf(logits[:, :, :0], image[:, :, :0]).shape == (2, 4, 0, 31)


def test_lattice_and_exact_agree_roughly():
    case = arguments("crf_pyd_64x48_L3_potts_symmetric")
    lattice, exact = (segops.dense_crf(**case, iterations=1, algorithm=a) for a in ("lattice", "exact"))
    assert (lattice - exact).abs().mean() < 0.01
    assert (lattice.argmax(1) == exact.argmax(1)).float().mean() > 0.98


def test_gradients():
    logits, image = scene(5, 6, 3, 1, torch.float64)
    logits.requires_grad_()
    spatial, bilateral = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in (1.0, 2.0))
    floating = image.double().requires_grad_()

    def run(algorithm):
        def crf(logits, spatial, bilateral, image):
            return segops.dense_crf(
                logits,
                image,
                spatial_weight=spatial,
                bilateral_weight=bilateral,
                iterations=2,
                algorithm=algorithm,
                bilateral_sigma_rgb=60.0,
            )

        return crf

    assert torch.autograd.gradcheck(run("exact"), (logits, spatial, bilateral, floating))
    assert torch.autograd.gradcheck(lambda a, b, c: run("lattice")(a, b, c, image), (logits, spatial, bilateral))


def test_compiles_exports_and_maps():
    logits, image = scene(8, 9)

    class Model(torch.nn.Module):
        def forward(self, logits, image):
            return segops.dense_crf(logits, image, iterations=2)

    q = Model()(logits, image)
    torch.testing.assert_close(torch.compile(Model(), fullgraph=True)(logits, image), q)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Model(), (logits, image), dynamic_shapes=({0: batch}, {0: batch}))
    more = torch.cat([logits, logits[:1]]), torch.cat([image, image[:1]])
    torch.testing.assert_close(program.module()(*more), Model()(*more), rtol=1e-5, atol=1e-6)
    stacked = torch.func.vmap(Model())(torch.stack([logits, logits.flip(0)]), torch.stack([image, image.flip(0)]))
    torch.testing.assert_close(stacked[1], q.flip(0), rtol=1e-5, atol=1e-6)


def bad(**changes):
    logits, image = scene()
    return {"logits": logits, "image": image, **changes}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"logits": torch.zeros(4, 24, 31)},
            ValueError,
            r"logits: expected 4 dimensions \(N, L, H, W\), got shape \(4, 24, 31\)",
        ),
        ({"image": np.zeros((2, 3, 24, 31))}, TypeError, r"image: expected a tensor \(N, C, H, W\), got ndarray"),
        (
            {"image": torch.zeros(2, 3, 24, 30)},
            ValueError,
            r"image: expected shape \(2, C, 24, 31\) .* got \(2, 3, 24, 30\)",
        ),
        ({"image": torch.zeros(1, 3, 24, 31)}, ValueError, r"image: expected shape \(2, C, 24, 31\)"),
        ({"image": torch.zeros(2, 0, 24, 31)}, ValueError, "image: expected shape .* C at least 1"),
        ({"image": torch.zeros(2, 23, 24, 31)}, ValueError, "image: expected at most 22 channels, got 23"),
        (
            {"image": torch.zeros(2, 3, 24, 31, dtype=torch.int64)},
            TypeError,
            "image: expected float64, .* got torch.int64",
        ),
        (
            {"image": torch.zeros(2, 3, 24, 31, device="meta")},
            ValueError,
            "image: expected device cpu like logits, got meta",
        ),
        (
            {"image": torch.full((2, 3, 24, 31), math.nan)},
            ValueError,
            "features.*: expected finite values, got NaN or inf",
        ),
        ({"spatial_sigma": 0}, ValueError, "spatial_sigma: expected a finite number > 0, got 0"),
        ({"spatial_sigma": (3, 4, 5)}, ValueError, "spatial_sigma: expected one number or 2, got 3"),
        (
            {"bilateral_sigma_xy": (80, -1)},
            ValueError,
            r"bilateral_sigma_xy\[1\]: expected a finite number > 0, got -1",
        ),
        ({"bilateral_sigma_rgb": math.nan}, ValueError, "bilateral_sigma_rgb: expected a finite number > 0, got nan"),
        ({"bilateral_sigma_rgb": "13"}, TypeError, "bilateral_sigma_rgb: expected a number, got str"),
        ({"bilateral_weight": math.inf}, ValueError, "bilateral_weight: expected a finite number, got inf"),
        (
            {"spatial_weight": torch.ones(2)},
            ValueError,
            "spatial_weight: expected a number or a tensor with one element",
        ),
        ({"compatibility": torch.zeros(3)}, ValueError, r"compatibility: expected shape \(4,\), \(4, 4\)"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        segops.dense_crf(**bad(**change))


def test_a_photo_of_100_megapixels_on_a_small_machine():
    """More labels than any machine has memory for: one clear error, before anything is allocated."""
    logits = torch.zeros(1, 1, 1, 1).expand(1, 100_000, 10_000, 10_000)
    image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 3, 10_000, 10_000)
    with pytest.raises(MemoryError, match="100000000 points with 100000 labels: about .* GB are needed"):
        segops.dense_crf(logits, image)
