"""The drop-in for pydensecrf: its answers (golden files), its names, and none of its complaints."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from segops import _native
from segops.compat.pydensecrf import densecrf, utils
from segops.compat.pydensecrf.densecrf import DenseCRF, DenseCRF2D

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("crf_pyd_*.npz"))
KERNELS = {"const": densecrf.CONST_KERNEL, "diag": densecrf.DIAG_KERNEL, "full": densecrf.FULL_KERNEL}
NORMALIZATIONS = {
    "none": densecrf.NO_NORMALIZATION,
    "before": densecrf.NORMALIZE_BEFORE,
    "after": densecrf.NORMALIZE_AFTER,
    "symmetric": densecrf.NORMALIZE_SYMMETRIC,
}


def load(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {name: file[name] for name in file.files}


def add_terms(crf, data, params):
    """The pairwise terms of a golden file, as a script for pydensecrf adds them."""
    options = {"kernel": KERNELS[params["kernel"]], "normalization": NORMALIZATIONS[params["normalization"]]}

    def compat(x):
        return np.array(x, np.float32) if isinstance(x, list) else x

    if gaussian := params.get("gaussian"):
        crf.addPairwiseGaussian(gaussian["sxy"], compat(gaussian["compat"]), **options)
    if bilateral := params.get("bilateral"):
        sigmas = {"sxy": bilateral["sxy"], "srgb": bilateral["srgb"]}
        crf.addPairwiseBilateral(**sigmas, rgbim=data["image"], compat=compat(bilateral["compat"]), **options)
    for k in range(len(params.get("d", []))):
        crf.addPairwiseEnergy(data[f"feats{k}"], compat(params["compat"][k]), **options)


def golden_crf(case):
    data = load(case)
    params = json.loads(str(data["params_json"]))
    if "W" in params:
        crf = DenseCRF2D(params["W"], params["H"], params["L"])
    else:
        crf = DenseCRF(params["N"], params["L"])
    crf.setUnaryEnergy(data["unary"].reshape(params["L"], -1))
    add_terms(crf, data, params)
    return crf, data, params


def random_crf(w=13, h=9, labels=3, seed=0, compat=2.0):
    rng = np.random.default_rng(seed)
    crf = DenseCRF2D(w, h, labels)
    crf.setUnaryEnergy(rng.random((labels, w * h), np.float32))
    crf.addPairwiseBilateral(5, 40, rng.integers(0, 256, (h, w, 3), np.uint8), compat)
    return crf


def run_python(code, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    )


# The peer's answers


def test_golden_files_are_there():
    assert len(CASES) >= 15


@pytest.mark.parametrize("case", CASES)
def test_marginals_are_the_peers(case):
    crf, data, params = golden_crf(case)
    for n in params["iterations"]:
        marginals = crf.inference(n)
        assert marginals.dtype == np.float32
        np.testing.assert_allclose(marginals, data[f"Q_it{n}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if "gen" not in case])
def test_divergence_of_every_step_is_the_peers(case):
    crf, data, _ = golden_crf(case)
    Q, tmp1, tmp2 = crf.startInference()
    kl = [crf.klDivergence(Q)]
    for _ in data["kl"][1:]:
        crf.stepInference(Q, tmp1, tmp2)
        kl.append(crf.klDivergence(Q))
    np.testing.assert_allclose(kl, data["kl"], rtol=1e-4)


def test_labels_are_those_of_simplecrf():
    data = load("crf_simplecrf_64x48_L3")
    h, w, labels = data["prob"].shape
    crf = DenseCRF2D(w, h, labels)
    clipped = np.clip(data["prob"], 0.01, 0.99)
    crf.setUnaryEnergy(-np.log(clipped).transpose(2, 0, 1).reshape(labels, -1))
    crf.addPairwiseGaussian(3, 3)
    crf.addPairwiseBilateral(80, 13, data["image"], 10)
    for n in (1, 5):
        found = crf.inference(n).argmax(0).reshape(h, w)
        assert (found == data[f"labels_it{n}"]).mean() > 0.999


# What a script may do


def test_steps_are_inference():
    crf = random_crf()
    Q, tmp1, tmp2 = crf.startInference()
    np.testing.assert_array_equal(Q, crf.inference(0))
    for _ in range(4):
        crf.stepInference(Q, tmp1, tmp2)
    np.testing.assert_allclose(Q, crf.inference(4), atol=2e-6)


@pytest.mark.parametrize("change", [np.asfortranarray, lambda Q: Q.astype(np.float64), lambda Q: Q[:, ::-1][:, ::-1]])
def test_a_step_works_in_place_on_any_array_of_floats(change):
    crf = random_crf()
    Q = change(crf.inference(0))
    same = Q
    crf.stepInference(Q, None, None)
    assert same is Q
    np.testing.assert_allclose(Q, crf.inference(1), atol=2e-6)


def test_divergence_falls_and_ignores_what_is_impossible():
    crf = random_crf()
    kl = [crf.klDivergence(crf.inference(n)) for n in range(5)]
    assert kl == sorted(kl, reverse=True)
    unary = np.zeros((3, 117))
    unary[2] = np.inf
    crf.setUnaryEnergy(unary)
    marginals = crf.inference(3)
    assert (marginals[2] == 0).all()
    assert np.isfinite(crf.klDivergence(marginals))


def test_terms_and_unary_may_change_between_calls():
    crf = random_crf()
    before = crf.inference(3)
    np.testing.assert_array_equal(crf.inference(3), before)
    crf.addPairwiseGaussian(2, 3)
    assert abs(crf.inference(3) - before).max() > 1e-3
    crf.setUnaryEnergy(np.zeros((3, 117)))
    np.testing.assert_allclose(crf.inference(3), 1 / 3, atol=1e-6)


def test_arrays_are_copied():
    rng = np.random.default_rng(0)
    unary, features = rng.random((2, 20), np.float32), rng.random((3, 20), np.float32)
    crf = DenseCRF(20, 2)
    crf.setUnaryEnergy(unary)
    crf.addPairwiseEnergy(features, 1)
    expected = np.exp(-unary) / np.exp(-unary).sum(0)
    unary[:], features[:] = 0, np.nan
    np.testing.assert_allclose(crf.inference(0), expected, atol=1e-6)
    assert np.isfinite(crf.inference(3)).all()


def test_unary_objects():
    rng = np.random.default_rng(0)
    weights, features = rng.normal(size=(2, 5)), rng.normal(size=(5, 12))
    results = []
    for unary in (densecrf.LogisticUnary(weights, features), densecrf.ConstUnary(weights @ features)):
        for _ in range(2):  # the peer crashes when one is used twice
            crf = DenseCRF(12, 2)
            crf.setUnary(unary)
            results.append(crf.inference(0))
    crf.setUnaryEnergy(weights, features)
    results.append(crf.inference(0))
    for result in results:
        np.testing.assert_allclose(result, results[0], atol=1e-6)


def assert_same_marginals(compat, energy, labels=3):
    """Marginals with ``compat`` are those with the full matrix ``energy``."""
    got, expected = (random_crf(labels=labels, compat=c).inference(3) for c in (compat, np.array(energy)))
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_kinds_of_compatibility():
    diagonal, matrix = [-1.0, -2.0, -3.0], [[0, 2, 4], [1, 0, 3], [0, 5, 0]]
    symmetric = (np.array(matrix) + np.array(matrix).T) / 2
    assert_same_marginals(3, -3 * np.eye(3))
    assert_same_marginals(np.float32(3), -3 * np.eye(3))
    assert_same_marginals(np.array(3), -3 * np.eye(3))
    assert_same_marginals(diagonal, np.diag(diagonal))
    assert_same_marginals(matrix, symmetric)
    assert_same_marginals(densecrf.PottsCompatibility(3), -3 * np.eye(3))
    assert_same_marginals(densecrf.DiagonalCompatibility(diagonal), np.diag(diagonal))
    assert_same_marginals(densecrf.MatrixCompatibility(np.array(matrix)), symmetric)


def test_terms_of_different_kinds_go_together():
    crf, other = random_crf(compat=2.0), random_crf(compat=-2 * np.eye(3))
    for c, kind in ((crf, np.ones((3, 3)) - np.eye(3)), (other, np.ones((3, 3)) - np.eye(3))):
        c.addPairwiseGaussian((3, 2), kind, normalization=densecrf.NORMALIZE_AFTER)
        c.addPairwiseGaussian(1, [-1, -1, -1], normalization=densecrf.NO_NORMALIZATION)
    np.testing.assert_allclose(crf.inference(4), other.inference(4), atol=2e-6)


# The complaints


ORDERS = {
    "fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", ["crf_pyd_64x48_L3_potts_symmetric", "crf_pyd_gen_grey_64x48_L3"])
def test_any_memory_order(case, order):
    crf, data, params = golden_crf(case)
    expected = crf.inference(2)
    crf = DenseCRF2D(64, 48, 3)
    crf.setUnaryEnergy(ORDERS[order](data["unary"].reshape(3, -1)))
    maps = {name: ORDERS[order](x) for name, x in data.items() if name in ("image", "feats0", "feats1")}
    add_terms(crf, maps, params)
    np.testing.assert_array_equal(crf.inference(2), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.int64, np.uint16, ">f4", bool])
def test_any_real_dtype(dtype):
    rng = np.random.default_rng(0)
    unary, image = rng.integers(0, 2, (2, 30)), rng.integers(0, 2, (5, 6, 3))
    results = []
    for kind in (np.float32, dtype):
        crf = DenseCRF2D(6, 5, 2)
        crf.setUnaryEnergy(unary.astype(kind))
        crf.addPairwiseBilateral(3, 1, image.astype(kind), np.array([[0, 1], [1, 0]], kind))
        crf.addPairwiseEnergy(image.reshape(30, 3).T.astype(kind), 1)
        results.append(crf.inference(3))
    np.testing.assert_array_equal(*results)


def test_images_of_any_number_of_channels():
    image, sigmas = np.random.default_rng(0).random((5, 6, 4), np.float32), np.float32([0.1, 0.2, 0.3, 0.4])
    crf, other = random_crf(6, 5), random_crf(6, 5)
    crf.addPairwiseBilateral((4, 2), sigmas, image, 3)
    y, x = np.mgrid[:5, :6]
    features = np.stack([x / 4, y / 2, *(image / sigmas).transpose(2, 0, 1)])
    other.addPairwiseEnergy(features.reshape(6, -1), 3)
    np.testing.assert_allclose(crf.inference(2), other.inference(2), atol=2e-6)


@pytest.mark.parametrize(("w", "h", "labels"), [(1, 1, 1), (1, 1, 3), (7, 1, 2), (5, 4, 1), (1, 3, 40), (11, 7, 70)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_small_problems(w, h, labels, n):
    marginals = random_crf(w, h, labels).inference(n)
    assert marginals.shape == (labels, w * h)
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-5)


def test_without_pairwise_terms():
    crf = DenseCRF(10, 4)
    crf.setUnaryEnergy(np.tile(np.arange(4), (10, 1)).T)
    np.testing.assert_allclose(
        crf.inference(3)[:, 0], np.exp(-np.arange(4.0)) / np.exp(-np.arange(4.0)).sum(), atol=1e-6
    )
    assert np.isfinite(crf.klDivergence(crf.inference(2)))


@pytest.mark.parametrize("n", [5, 6, 7])
def test_no_stray_vertices_when_points_are_no_multiple_of_four(n):
    """Points far away change nothing. The peer fills up to a multiple of four, with points at the origin."""
    rng = np.random.default_rng(0)
    unary, features = rng.random((3, 8)), 2 * rng.random((2, 8)) - 1
    features[:, n:] = 1000
    marginals = []
    for points in (n, 8):
        crf = DenseCRF(points, 3)
        crf.setUnaryEnergy(unary[:, :points])
        crf.addPairwiseEnergy(features[:, :points], 3)
        marginals.append(crf.inference(3)[:, :n])
    np.testing.assert_allclose(*marginals, atol=1e-6)


def test_repeats_are_identical_whatever_the_threads_do():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    results = []
    for _ in range(5):
        crf = random_crf(80, 60, 5)
        crf.addPairwiseBilateral(20, 13, image, 5)
        results.append(crf.inference(4))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_one_crf_in_several_threads_of_python():
    crf = random_crf(40, 30, 4)
    expected, results = crf.inference(3), [None] * 4

    def work(i):
        results[i] = crf.inference(3)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


SCRIPT = """
import os, sys
import numpy as np
import segops.compat.pydensecrf.densecrf as dcrf
from segops.compat.pydensecrf.utils import (compute_unary, create_pairwise_bilateral, create_pairwise_gaussian,
                                            softmax_to_unary, unary_from_labels, unary_from_softmax)
rng = np.random.default_rng(0)
crf = dcrf.DenseCRF2D(60, 50, 3)
crf.setUnaryEnergy(unary_from_softmax(rng.dirichlet(np.ones(3), (50, 60)).transpose(2, 0, 1)))
crf.addPairwiseGaussian(3, 3)
crf.addPairwiseBilateral(20, 13, rng.integers(0, 256, (50, 60, 3), np.uint8), 5)
Q = crf.inference(5)
assert "torch" not in sys.modules
child = os.fork()  # the threads of the parent are not there any more
if child == 0:
    os._exit(0 if np.array_equal(crf.inference(5), Q) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(np.abs(Q).sum(), sum(q.sum() * i for i, q in enumerate(Q)))
"""


def test_without_torch_across_a_fork_and_on_any_number_of_threads():
    sums = [
        np.array(run_python(SCRIPT, OMP_NUM_THREADS=n).stdout.split(), float) for n in ("1", "2", "7,2", "no number")
    ]
    for other in sums[1:]:
        np.testing.assert_allclose(other, sums[0], rtol=1e-4)


def test_missing_library_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(_native, "library", lambda name: None)
    monkeypatch.setattr(_native, "missing", lambda name: "not built")
    spec = importlib.util.find_spec("segops.compat.pydensecrf.densecrf")
    with pytest.raises(ImportError, match=r"segops/_host.*not built.*make build"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert importlib.reload(utils) is utils  # needs no library


IMAGE = np.zeros((9, 13, 3), np.uint8)
NAN = np.full((3, 117), np.nan)
BAD = {
    "npoints: expected an integer >= 1, got 0": lambda c: DenseCRF(0, 2),
    "nlabels: expected an integer >= 1, got -1": lambda c: DenseCRF(5, -1),
    "w: expected an integer, got float": lambda c: DenseCRF2D(5.0, 4, 2),
    "h: expected an integer >= 1, got 0": lambda c: DenseCRF2D(5, 0, 2),
    r"u: expected shape \(3, 117\), got \(3, 9, 13\)": lambda c: c.setUnaryEnergy(np.zeros((3, 9, 13))),
    r"u: expected shape \(3, 117\), got \(117, 3\)": lambda c: c.setUnaryEnergy(np.zeros((117, 3))),
    "u: expected finite energies .*got NaN": lambda c: c.setUnaryEnergy(NAN),
    "u: expected finite energies .*or -inf": lambda c: c.setUnaryEnergy(np.full((3, 117), -np.inf)),
    "u: expected a label of finite energy": lambda c: c.setUnaryEnergy(np.full((3, 117), np.inf)),
    "u: expected a label of finite energy .*": lambda c: c.setUnaryEnergy(np.full((3, 117), 1e300)),
    "u: expected an array of real numbers, got dtype complex128": lambda c: c.setUnaryEnergy(np.zeros((3, 117)) * 1j),
    "u: expected an array of real numbers, got dtype object": lambda c: c.setUnaryEnergy(None),
    "u: expected an array of numbers": lambda c: c.setUnaryEnergy([[1, 2], [3]]),
    "u: expected a ConstUnary or a LogisticUnary, got ndarray": lambda c: c.setUnary(np.zeros((3, 117))),
    r"u: expected a ConstUnary .*, got Unary$": lambda c: c.setUnary(densecrf.Unary()),
    r"f: expected shape \(2, points\), got \(3, 117\)": lambda c: c.setUnaryEnergy(
        np.zeros((3, 2)), np.zeros((3, 117))
    ),
    "unary energy: not set; call setUnaryEnergy": lambda c: DenseCRF(4, 2).inference(1),
    "unary energy: not set": lambda c: DenseCRF(4, 2).startInference(),
    "n: expected an integer >= 0, got -1": lambda c: c.inference(-1),
    "n: expected an integer, got float": lambda c: c.inference(1.5),
    "sxy: expected a finite number > 0, got 0": lambda c: c.addPairwiseGaussian(0, 1),
    r"sxy\[1\]: expected a finite number > 0, got nan": lambda c: c.addPairwiseGaussian((1, np.nan), 1),
    "sxy: expected one number or 2, got 3": lambda c: c.addPairwiseGaussian((1, 2, 3), 1),
    "sxy: expected a number, got str": lambda c: c.addPairwiseGaussian("3", 1),
    r"srgb: expected one number or 3, got 2": lambda c: c.addPairwiseBilateral(3, (1, 2), IMAGE, 1),
    r"rgbim: expected shape \(9, 13, channels\), got \(13, 9, 3\)": lambda c: c.addPairwiseBilateral(
        3, 1, IMAGE.transpose(1, 0, 2), 1
    ),
    r"rgbim: expected shape \(9, 13, channels\), got \(9, 13\)": lambda c: c.addPairwiseBilateral(
        3, 1, IMAGE[..., 0], 1
    ),
    "rgbim: expected 1 to 22 channels, got 0": lambda c: c.addPairwiseBilateral(3, 1, IMAGE[..., :0], 1),
    "rgbim: expected finite numbers, got NaN": lambda c: c.addPairwiseBilateral(3, 1, IMAGE * np.nan, 1),
    "rgbim: expected an array of real numbers": lambda c: c.addPairwiseBilateral(3, 1, "cat.png", 1),
    r"features: expected shape \(D, 117\), got \(2, 116\)": lambda c: c.addPairwiseEnergy(np.zeros((2, 116)), 1),
    "features: expected finite numbers": lambda c: c.addPairwiseEnergy(NAN, 1),
    "features: expected 1 to 24 rows, got 25": lambda c: c.addPairwiseEnergy(np.zeros((25, 117)), 1),
    "features: expected 1 to 24 rows, got 0": lambda c: c.addPairwiseEnergy(np.zeros((0, 117)), 1),
    r"compat: expected a number, shape \(3,\) or \(3, 3\) for 3 labels, got \(4,\)": lambda c: c.addPairwiseGaussian(
        3, np.ones(4)
    ),
    "compat: expected finite numbers": lambda c: c.addPairwiseGaussian(3, np.inf),
    "compat: expected finite numbers, got NaN": lambda c: c.addPairwiseGaussian(3, [1, 2, np.nan]),
    "compat: expected an array of real numbers": lambda c: c.addPairwiseGaussian(3, "potts"),
    "kernel: expected one of CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL, got 7": lambda c: c.addPairwiseGaussian(3, 1, 7),
    "normalization: expected one of NO_NORMALIZATION, .*got 'symmetric'": lambda c: c.addPairwiseGaussian(
        3, 1, normalization="symmetric"
    ),
    r"Q: expected shape \(3, 117\), got \(3, 116\)": lambda c: c.stepInference(np.zeros((3, 116)), None, None),
    "Q: expected a writeable array of floats": lambda c: c.stepInference([[0.5]], None, None),
    "Q: expected finite marginals": lambda c: c.stepInference(NAN.copy(), None, None),
    "Q: expected finite numbers": lambda c: c.klDivergence(NAN),
    r"Q: expected shape \(3, 117\), got \(117,\)": lambda c: c.klDivergence(np.zeros(117)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_error(message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        BAD[message](random_crf())


def test_sigmas_too_small_or_weights_too_large_for_float32():
    crf = random_crf()
    crf.addPairwiseGaussian(1e-12, 1)
    with pytest.raises(ValueError, match=r"^features: .*use larger sigmas \(terms of .*addPairwiseGaussian\)$"):
        crf.inference(1)
    with pytest.raises(ValueError, match="^compat: the pairwise energies are beyond float32"):
        random_crf(compat=3e38).inference(3)


def test_more_than_the_machine_holds_is_a_memory_error():
    crf = DenseCRF(10**12, 2)
    with pytest.raises(MemoryError, match="^1000000000000 points with 2 labels: about 1.6e[+]04 GB are needed"):
        crf.setUnaryEnergy(np.broadcast_to(np.float32(0), (2, 10**12)))
