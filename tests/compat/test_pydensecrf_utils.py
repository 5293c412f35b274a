"""The drop-in's helper functions, and that no name of the peer is missing."""

import doctest
import importlib
import importlib.util
import re

import numpy as np
import pytest

from segops.compat.pydensecrf import densecrf, utils
from segops.compat.pydensecrf.densecrf import DenseCRF, DenseCRF2D

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def test_unary_from_labels():
    labels = np.array([[0, 1], [2, 3]], np.uint8)
    known = np.full((3, 4), 0.25)
    known[[0, 1, 2], [1, 2, 3]] = 0.5
    known[:, 0] = 1 / 3
    for order in (labels, np.asfortranarray(labels), labels.astype(float), labels.tolist()):
        energies = utils.unary_from_labels(order, 3, 0.5)
        assert energies.dtype == np.float32
        np.testing.assert_allclose(energies, -np.log(known), rtol=1e-6)
    counted = utils.unary_from_labels(labels, 4, 0.7, zero_unsure=False)
    np.testing.assert_allclose(counted, -np.log(np.where(np.eye(4), 0.7, 0.1)), rtol=1e-6)
    with pytest.warns(DeprecationWarning, match="unary_from_labels"):
        np.testing.assert_array_equal(utils.compute_unary(labels, 3), utils.unary_from_labels(labels, 3, 0.5))
    np.testing.assert_allclose(utils.unary_from_labels([0, 1], 1, 0.5), [[0, np.log(2)]], rtol=1e-6)
    assert utils.unary_from_labels(np.zeros((0, 4), int), 3, 0.5).shape == (3, 0)


def test_unary_from_softmax():
    sm = np.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    np.testing.assert_allclose(utils.unary_from_softmax(sm), -np.log(np.clip(sm, 1e-5, 1)), rtol=1e-6)
    np.testing.assert_allclose(utils.unary_from_softmax(sm, scale=0.6), -np.log(0.6 * sm + 0.2), rtol=1e-6)
    for other in (sm.astype(np.float16), sm.tolist(), np.asfortranarray(sm), sm.reshape(2, 3, 1)):
        np.testing.assert_allclose(utils.unary_from_softmax(other), utils.unary_from_softmax(sm), rtol=2e-4)
    one_hot = (sm == 1).astype(np.uint8)
    for energies in (utils.unary_from_softmax(one_hot), utils.unary_from_softmax(one_hot, clip=None)):
        assert energies.dtype == np.float32
        assert np.isfinite(energies).all()
    with pytest.warns(DeprecationWarning, match="unary_from_softmax"):
        assert np.isfinite(utils.softmax_to_unary(sm)).all()
    with pytest.warns(DeprecationWarning, match="unary_from_softmax"):
        np.testing.assert_allclose(utils.softmax_to_unary(sm, 0.6), utils.unary_from_softmax(sm, 0.6), rtol=1e-6)


def test_zero_probabilities_end_in_no_nan():
    crf = densecrf.DenseCRF2D(13, 9, 3)
    crf.addPairwiseGaussian(3, 2.0)
    crf.setUnaryEnergy(utils.unary_from_softmax(np.eye(3)[np.arange(117) % 3].T))
    assert np.isfinite(crf.inference(5)).all()


def test_features_of_grids():
    np.testing.assert_allclose(
        utils.create_pairwise_gaussian((2, 4), (2, 3)), [[0, 0, 0, 0.5, 0.5, 0.5], [0, 0.25, 0.5] * 2]
    )
    volume = np.random.default_rng(0).random((2, 3, 4, 5))
    features = utils.create_pairwise_bilateral((1, 2, 3), (0.1, 0.2), volume, chdim=0)
    np.testing.assert_allclose(features[:3], utils.create_pairwise_gaussian((1, 2, 3), (3, 4, 5)))
    np.testing.assert_allclose(
        features[3:], (volume / np.array([0.1, 0.2])[:, None, None, None]).reshape(2, -1), rtol=1e-6
    )
    moved = utils.create_pairwise_bilateral((1, 2, 3), (0.1, 0.2), np.moveaxis(volume, 0, -1), chdim=3)
    np.testing.assert_array_equal(moved, features)
    grey = utils.create_pairwise_bilateral((1, 2), 10, np.full((3, 4), 5, np.uint8))
    np.testing.assert_array_equal(grey[2], np.full(12, 0.5, np.float32))
    assert grey.dtype == np.float32


BAD_UTILS = {
    "labels: expected 0 to 3, got 0 to 4": lambda: utils.unary_from_labels([0, 4], 3, 0.5),
    "labels: expected 0 to 2, got -1 to 1": lambda: utils.unary_from_labels([-1, 1], 3, 0.5, zero_unsure=False),
    "labels: expected 0 to 2, got 0 to 255": lambda: utils.unary_from_labels(
        np.uint8([0, 255]), 3, 0.5, zero_unsure=False
    ),
    "labels: expected integers, got fractions": lambda: utils.unary_from_labels([0.5], 3, 0.5),
    "labels: expected finite": lambda: utils.unary_from_labels([np.nan], 3, 0.5),
    "labels: expected an array of real numbers": lambda: utils.unary_from_labels(["cat"], 3, 0.5),
    "n_labels: expected an integer >= 1, got 0": lambda: utils.unary_from_labels([0], 0, 0.5),
    "gt_prob: expected a number between 0 and 1, exclusive, got 1": lambda: utils.unary_from_labels([0], 2, 1),
    "sm: expected finite": lambda: utils.unary_from_softmax([[np.nan], [1.0]]),
    r"sm: expected shape \(labels, ...\), got \(\)": lambda: utils.unary_from_softmax(0.5),
    "scale: expected None or a number in": lambda: utils.unary_from_softmax([[1.0]], scale=0),
    "clip: expected None or a number in": lambda: utils.unary_from_softmax([[1.0]], clip=0),
    "sdims: expected one number or 2, got 3": lambda: utils.create_pairwise_gaussian((1, 2, 3), (4, 5)),
    "sdims: expected 2 numbers": lambda: utils.create_pairwise_gaussian(3, (4, 5)),
    r"sdims\[1\]: expected a finite number > 0, got 0": lambda: utils.create_pairwise_gaussian((1, 0), (4, 5)),
    "shape: expected the sizes of all dimensions": lambda: utils.create_pairwise_gaussian((1,), 4),
    "schan: expected one number or 3, got 2": lambda: utils.create_pairwise_bilateral((1, 1), (1, 2), IMAGE, 2),
    "sdims: expected one number or 3, got 2": lambda: utils.create_pairwise_bilateral((1, 1), 1, IMAGE),
    "chdim: expected -1 or a dimension of img, of which there are 3, got 3": lambda: utils.create_pairwise_bilateral(
        (1, 1), 1, IMAGE, 3
    ),
    "img: expected finite": lambda: utils.create_pairwise_bilateral((1, 1), 1, np.full((2, 2), np.inf)),
}


@pytest.mark.parametrize("message", BAD_UTILS)
def test_bad_input_of_utils_is_one_clear_error(message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        BAD_UTILS[message]()


# Names

NAMES = """
CONST_KERNEL DIAG_KERNEL FULL_KERNEL NO_NORMALIZATION NORMALIZE_BEFORE NORMALIZE_AFTER NORMALIZE_SYMMETRIC KernelType
NormalizationType Unary ConstUnary LogisticUnary DenseCRF DenseCRF2D
""".split()
METHODS = """
addPairwiseEnergy addPairwiseBilateral addPairwiseGaussian inference klDivergence setUnary setUnaryEnergy startInference
stepInference
""".split()


def test_names_and_values():
    assert [getattr(densecrf, name) for name in NAMES[:7]] == [0, 1, 2, 0, 1, 2, 3]
    assert set(NAMES) <= set(densecrf.__all__)
    assert all(callable(getattr(DenseCRF2D, name)) for name in METHODS)
    assert issubclass(DenseCRF2D, DenseCRF)
    with pytest.raises(AttributeError, match="eigen: not offered, marginals are NumPy arrays"):
        densecrf.eigen  # noqa: B018


def test_names_are_all_that_the_peer_has():
    """Where pydensecrf is installed: the lists above lack none of its public names."""
    if importlib.util.find_spec("pydensecrf") is None:
        return
    peer = importlib.import_module("pydensecrf.densecrf")
    public = {name for name in dir(peer) if not name.startswith("_")} - {"Number", "eigen"}
    assert public <= set(NAMES)
    assert {name for name in dir(peer.DenseCRF2D) if not name.startswith("_")} <= set(METHODS)
    for name in NAMES[:7]:
        assert int(getattr(peer, name)) == getattr(densecrf, name)
    functions = {name for name in dir(importlib.import_module("pydensecrf.utils")) if re.match("[a-z]", name)}
    assert functions - {"np", "warning"} <= set(utils.__all__)


def test_examples_of_the_docstrings():
    for module in (densecrf, utils):
        failed, tried = doctest.testmod(module)
        assert tried
        assert not failed
