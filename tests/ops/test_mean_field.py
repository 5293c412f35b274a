"""segops.mean_field: golden cases, the equations' identities, bad input."""

from __future__ import annotations

import math

import golden_crf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segops

GOLDEN = golden_crf.names("crf_pyd_*")
# The mean field is bistable in these, after ten updates: a rounding decides which of two fixed points is reached.
BISTABLE = {("crf_pyd_gen_3d_vol_24x20x16_L3", 10), ("crf_pyd_64x48_L3_bilat_only", 10)}


@pytest.mark.parametrize("name", GOLDEN)
def test_lattice_equals_pydensecrf(name):
    case = golden_crf.crf(name)
    for iterations in case.iterations:
        q = segops.mean_field(**case.arguments(), iterations=iterations)[0]
        peer, exact = (torch.from_numpy(case.arrays[f"{k}_it{iterations}"]) for k in ("Q", "exact"))
        if (name, iterations) not in BISTABLE:
            torch.testing.assert_close(q, peer, rtol=0, atol=1e-4)
        ours, theirs = (q - exact).abs().mean(), (peer - exact).abs().mean()
        assert ours <= theirs + 1e-6 + 1e-4 * theirs, "further from the exact answer than the peer"


@pytest.mark.parametrize("name", GOLDEN)
def test_exact_equals_brute_force(name):
    case = golden_crf.crf(name)
    for iterations in case.iterations:
        if (name, iterations) in BISTABLE:
            continue
        q = segops.mean_field(**case.arguments(), iterations=iterations, algorithm="exact")[0]
        torch.testing.assert_close(q, torch.from_numpy(case.arrays[f"exact_it{iterations}"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("peer", ["crfasrnn", "heiwang", "monai"])
@pytest.mark.parametrize("iterations", [1, 5])
def test_other_peers_normalise_after(peer, iterations):
    arrays = golden_crf.load(f"crf_{peer}_64x48_L3_it{iterations}")
    image = arrays["image"]
    logits = torch.from_numpy(arrays["logits"] if "logits" in arrays else -arrays["unary"]).reshape(1, 3, -1)
    position, color = golden_crf.image_features(image, (3, 3)), golden_crf.image_features(image, (80, 80), (13, 13, 13))
    if peer == "monai":  # y before x
        position, color = position[:, [1, 0]], color[:, [1, 0, 2, 3, 4]]
    q = segops.mean_field(logits, [position, color], [3.0, 10.0], iterations=iterations, normalization="after")
    torch.testing.assert_close(q[0], torch.from_numpy(arrays["Q"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", golden_crf.names("crf_grad_*"))
def test_gradients_equal_those_of_the_exact_sum(name):
    arrays = golden_crf.load(name)
    params = arrays["params"]
    logits = (-torch.from_numpy(arrays["unary"]).double())[None].requires_grad_()
    sigma = [(params["gaussian_sxy"],) * 2, (params["bilateral_sxy"],) * 2]
    features = [
        golden_crf.image_features(arrays["image"], sigma[0]).double().requires_grad_(),
        golden_crf.image_features(arrays["image"], sigma[1], (params["bilateral_srgb"],) * 3).double().requires_grad_(),
    ]
    compatibility = torch.from_numpy(arrays["compat"]).double()
    if params["compat"] == "potts":
        compatibility = torch.stack([compatibility, compatibility]) if compatibility.dim() == 2 else compatibility
    compatibility = compatibility if compatibility.dim() == 3 else torch.stack([compatibility] * 2)
    compatibility.requires_grad_()
    q = segops.mean_field(
        logits,
        features,
        [1.0, 1.0],
        iterations=3,
        compatibility=compatibility,
        normalization=params["normalization"],
        algorithm="exact",
    )
    labels = torch.from_numpy(arrays["labels"]).long()
    known = labels >= 0
    objective = q[0, :, known].gather(0, labels[known][None]).clamp_min(1e-20).log().sum() / len(
        labels
    )  # the peer's floor
    objective.backward()
    torch.testing.assert_close(objective, torch.tensor(arrays["loss"]).abs() * objective.sign(), rtol=1e-6, atol=0)
    wanted = {
        "d_unary": -logits.grad[0],
        "d_feat_gauss": features[0].grad[0],
        "d_feat_bilat": features[1].grad[0],
        "d_compat_gauss": compatibility.grad[0],
        "d_compat_bilat": compatibility.grad[1],
    }
    for key, actual in wanted.items():
        reference = torch.from_numpy(arrays[key])
        assert (actual - reference).norm() <= 1e-6 * reference.norm(), key


def small(dtype=torch.float64, labels=4):
    logits = torch.randn(2, labels, 50, dtype=dtype)
    return logits, [torch.randn(1, 2, 50, dtype=dtype), torch.randn(2, 3, 50, dtype=dtype)]


@pytest.mark.parametrize("algorithm", ["lattice", "exact"])
def test_potts_is_one_off_the_diagonal(algorithm):
    logits, features = small()
    potts = segops.mean_field(logits, features, [2.0, 0.5], algorithm=algorithm)
    matrix = segops.mean_field(
        logits, features, [2.0, 0.5], compatibility=1 - torch.eye(4).double(), algorithm=algorithm
    )
    vector = segops.mean_field(logits, features, [2.0, 0.5], compatibility=-torch.ones(4).double(), algorithm=algorithm)
    torch.testing.assert_close(matrix, potts)
    torch.testing.assert_close(vector, potts)


def test_softmax_of_the_returned_logits_are_the_marginals():
    logits, features = small()
    for iterations in (0, 3):
        q = segops.mean_field(logits, features, [1.0, 1.0], iterations=iterations)
        state = segops.mean_field(logits, features, [1.0, 1.0], iterations=iterations, return_logits=True)
        torch.testing.assert_close(state.softmax(1), q)
    torch.testing.assert_close(
        segops.mean_field(logits, features, [1.0, 1.0], iterations=0, return_logits=True), logits.log_softmax(1)
    )


def test_a_shift_of_all_logits_changes_nothing():
    logits, features = small()
    shifted = segops.mean_field(logits + 100, features, [1.0, 1.0])
    torch.testing.assert_close(shifted, segops.mean_field(logits, features, [1.0, 1.0]))


def test_weights_and_compatibility_get_gradients():
    logits, features = small()
    weights = torch.tensor([1.0, 0.3], dtype=torch.float64, requires_grad=True)
    for compatibility in (None, -torch.rand(4).double(), torch.rand(4, 4).double(), torch.rand(2, 4, 4).double()):

        def run(w, c=compatibility):
            return segops.mean_field(logits, features, w, compatibility=c, iterations=2)

        assert torch.autograd.gradcheck(run, (weights,))
        if compatibility is not None:
            assert torch.autograd.gradcheck(
                lambda c: segops.mean_field(logits, features, weights, compatibility=c, iterations=2),
                (compatibility.requires_grad_(),),
                fast_mode=True,
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    logits, features = small(dtype)
    q = segops.mean_field(logits, features, [1.0, 1.0])
    wide = segops.mean_field(logits.float(), [f.float() for f in features], [1.0, 1.0])
    assert q.dtype == dtype
    torch.testing.assert_close(q, wide.to(dtype), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert segops.mean_field(logits, features, [1.0, 1.0]).dtype == torch.float32


def test_forbidden_labels_stay_forbidden():
    logits, features = small(torch.float32)
    logits[:, 1, :25] = -math.inf
    q = segops.mean_field(logits, features, [1.0, 1.0], iterations=3)
    assert torch.isfinite(q).all() and (q[:, 1, :25] == 0).all() and (q[:, 1, 25:] > 0).any()


def test_public_function_compiles_whole():
    logits, features = small(torch.float32)

    def run(logits, *features):
        return segops.mean_field(logits * 2, list(features), [1.0, 0.5], iterations=2) + 1

    torch.testing.assert_close(torch.compile(run, fullgraph=True)(logits, *features), run(logits, *features))


def test_one_label_no_kernels_no_iterations():
    logits, features = small(labels=1)
    torch.testing.assert_close(segops.mean_field(logits, features, [1.0, 1.0]), torch.ones_like(logits))
    logits, features = small()
    torch.testing.assert_close(segops.mean_field(logits, features, [1.0, 1.0], iterations=0), logits.softmax(1))
    torch.testing.assert_close(segops.mean_field(logits, [], [], iterations=3), logits.softmax(1))
    assert segops.mean_field(logits[:0], [features[0]], [1.0]).shape == (0, 4, 50)
    assert segops.mean_field(logits[..., :0], [features[0][..., :0]], [1.0]).shape == (2, 4, 0)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    labels=st.integers(1, 40),
    points=st.integers(1, 60),
    dims=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    iterations=st.integers(0, 3),
    normalization=st.sampled_from(["symmetric", "before", "after", "none"]),
    matrix=st.booleans(),
)
def test_any_sizes_agree_with_the_reference(batch, labels, points, dims, iterations, normalization, matrix):
    g = torch.Generator().manual_seed(points)
    logits = torch.randn(batch, labels, points, generator=g, dtype=torch.float64)
    features = [torch.randn(1 if k else batch, d, points, generator=g, dtype=torch.float64) for k, d in enumerate(dims)]
    shape = (len(dims), labels, labels) if matrix else (labels,)
    arguments = {
        "compatibility": 0.2 * torch.randn(shape, generator=g, dtype=torch.float64),
        "iterations": iterations,
        "normalization": normalization,
    }
    q = segops.mean_field(logits, features, [0.5] * len(dims), **arguments)
    with segops.backend("reference"):
        torch.testing.assert_close(
            q, segops.mean_field(logits, features, [0.5] * len(dims), **arguments), rtol=1e-9, atol=1e-10
        )


def bad(**changes):
    logits, features = small(torch.float32)
    return {"logits": logits, "features": features, "weights": [1.0, 1.0], **changes}


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits: expected a tensor .N, L, P., got list"),
        ({"logits": torch.zeros(2, 4)}, ValueError, r"logits: expected 3 dimensions \(N, L, P\), got shape \(2, 4\)"),
        (
            {"logits": torch.zeros(2, 4, 50, dtype=torch.int64)},
            TypeError,
            "logits: expected float64, .* got torch.int64",
        ),
        ({"logits": torch.zeros(2, 0, 50)}, ValueError, "logits: expected at least one label"),
        ({"logits": torch.zeros(2, 4, 50).to_sparse()}, TypeError, "logits: expected a dense tensor"),
        ({"features": torch.zeros(1, 2, 50)}, TypeError, "features: expected a list"),
        (
            {"features": [torch.zeros(1, 2, 50), torch.zeros(3, 2, 50)]},
            ValueError,
            r"features\[1\]: expected shape \(2 or 1, D, 50\)",
        ),
        (
            {"features": [torch.zeros(1, 2, 49)], "weights": [1.0]},
            ValueError,
            r"features\[0\]: expected shape \(2 or 1, D, 50\)",
        ),
        (
            {"features": [torch.zeros(1, 25, 50)], "weights": [1.0]},
            ValueError,
            r"features\[0\]: expected 1 to 24 features",
        ),
        (
            {"features": [torch.zeros(1, 2, 50, device="meta")], "weights": [1.0]},
            ValueError,
            r"features\[0\]: expected device cpu",
        ),
        ({"weights": [1.0]}, ValueError, "weights: expected 2, one for each of the features, got 1"),
        ({"weights": [1.0, NAN]}, ValueError, r"weights\[1\]: expected a finite number, got nan"),
        ({"weights": 3.0}, TypeError, "weights: expected numbers or a tensor"),
        (
            {"compatibility": torch.zeros(5)},
            ValueError,
            r"compatibility: expected shape \(4,\), \(4, 4\) or \(2, 4, 4\)",
        ),
        ({"compatibility": [1, 2]}, TypeError, "compatibility: expected None or a tensor, got list"),
        ({"iterations": -1}, ValueError, "iterations: expected an integer >= 0, got -1"),
        ({"iterations": 2.5}, TypeError, "iterations: expected an integer, got float"),
        ({"normalization": "sym"}, ValueError, "normalization: expected one of 'symmetric', .* got 'sym'"),
        ({"algorithm": "fast"}, ValueError, "algorithm: expected one of 'lattice', 'exact', got 'fast'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        segops.mean_field(**bad(**arguments))


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("algorithm", ["lattice", "exact"])
@pytest.mark.parametrize("value", [NAN, INF, "all -inf"])
def test_bad_logits(value, algorithm, backend):
    arguments = bad()
    arguments["logits"][1, :, 7] = -INF if value == "all -inf" else 0
    if value != "all -inf":
        arguments["logits"][1, 2, 7] = value
    with pytest.raises(ValueError, match="logits: expected finite values"), segops.backend(backend):
        segops.mean_field(**arguments, algorithm=algorithm)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("algorithm", ["lattice", "exact"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_bad_features(value, algorithm, backend):
    arguments = bad()
    arguments["features"][1][0, 1, 3] = value
    with pytest.raises(ValueError, match="features.*: expected finite values"), segops.backend(backend):
        segops.mean_field(**arguments, algorithm=algorithm)


def test_features_too_wide_for_any_key():
    logits = torch.zeros(1, 2, 50)
    with pytest.raises(ValueError, match="features: values span too many lattice cells in 20 dimensions"):
        segops.mean_field(logits, [1e4 * torch.randn(1, 20, 50)], [1.0])
    wide = 1e3 * torch.randn(1, 8, 50)  # too wide for 64 bits, not for 128
    torch.testing.assert_close(segops.mean_field(logits, [wide], [1.0]), torch.full((1, 2, 50), 0.5))


def test_more_memory_than_there_is():
    points = 10**11
    logits, features = torch.zeros(1, 1, 1).expand(1, 21, points), torch.zeros(1, 1, 1).expand(1, 5, points)
    with pytest.raises(MemoryError, match="points"):
        segops.mean_field(logits, [features], [1.0])
