"""pydensecrf.densecrf on the cores of segops: mean field in a fully connected CRF (Kraehenbuehl and Koltun 2011).

>>> import numpy as np
>>> import segops.compat.pydensecrf.densecrf as dcrf
>>> from segops.compat.pydensecrf.utils import unary_from_labels
>>> image = np.zeros((20, 30, 3), np.uint8)
>>> labels = np.zeros((20, 30), int)
>>> image[:, 15:] = 255
>>> labels[:, 17:] = 1  # two columns short of the edge in the image
>>> crf = dcrf.DenseCRF2D(30, 20, 2)
>>> crf.setUnaryEnergy(unary_from_labels(labels, 2, gt_prob=0.7, zero_unsure=False))
>>> crf.addPairwiseGaussian(sxy=3, compat=3)
>>> crf.addPairwiseBilateral(sxy=20, srgb=13, rgbim=image, compat=10)
>>> marginals = crf.inference(5)
>>> refined = marginals.argmax(axis=0).reshape(20, 30)
>>> bool((refined == (image[:, :, 0] > 0)).all())
True
"""

from __future__ import annotations

from enum import IntEnum
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ... import _native
from . import _checks

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "DiagonalCompatibility",
    "KernelType",
    "LogisticUnary",
    "MatrixCompatibility",
    "NormalizationType",
    "PottsCompatibility",
    "Unary",
]

_host: Any = _native.library("_host")
if _host is None:
    raise ImportError(
        f"segops.compat.pydensecrf needs segops/_host, which is missing: {_native.missing('_host')}. To build it: "
        "a C++20 compiler, `pip install pybind11 setuptools`, then `make build` in the checkout of segops, or "
        "`pip install --no-build-isolation .`"
    )


class KernelType(IntEnum):
    """Accepted and without effect: they differ only when a kernel is learnt, which pydensecrf does not offer either."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """Where the norm n = K 1 divides: nowhere, before filtering, after it, or its root on both sides."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType


class Unary:
    """Unary energies (labels, points) for `DenseCRF.setUnary`; unlike pydensecrf's, good for any number of CRFs."""

    energy: np.ndarray | None = None


class ConstUnary(Unary):
    """Given energies."""

    def __init__(self, u: Any) -> None:
        self.energy = _checks.floats("u", u, ("labels", "points")).copy()


class LogisticUnary(Unary):
    """Energies ``L @ f`` of features f (features, points), L (labels, features)."""

    def __init__(self, L: Any, f: Any) -> None:
        L = _checks.floats("L", L, ("labels", "features"))
        self.energy = L @ _checks.floats("f", f, (L.shape[1], "points"))


class PottsCompatibility:
    """``-weight`` where labels agree; the same as passing the number."""

    def __init__(self, weight: float = 1.0) -> None:
        self.compat = weight


class DiagonalCompatibility:
    """Its entry where labels agree, added as it is (so rewards are negative); the same as passing the vector."""

    def __init__(self, v: Any) -> None:
        self.compat = v


class MatrixCompatibility:
    """The energy between all labels, symmetrised; the same as passing the matrix."""

    def __init__(self, m: Any) -> None:
        self.compat = m


class _Term(NamedTuple):
    """One pairwise term: who added it, features (D, points), a diagonal (L,) or a matrix (L, L) of energies."""

    name: str
    features: np.ndarray
    energy: np.ndarray
    normalization: int


class DenseCRF:
    """A fully connected CRF over any points: volumes, signals, point clouds. `DenseCRF2D` adds the terms of images.

    Arrays may come in any memory order and any real dtype; inference is float32.
    """

    def __init__(self, npoints: int, nlabels: int) -> None:
        self._points = _checks.count("npoints", npoints, 1)
        self._labels = _checks.count("nlabels", nlabels, 1)
        self._logits: np.ndarray | None = None
        self._terms: list[_Term] = []
        self._lattices: Any = None  # of all terms, built when they are first needed

    def setUnaryEnergy(self, u: Any, f: Any = None) -> None:
        """Unary energies ``-log p`` (labels, points); ``+inf`` forbids a label. With f: as `LogisticUnary`."""
        if f is not None:
            u = LogisticUnary(u, f).energy
        _host.require_memory(8.0 * self._labels * self._points, f"{self._points} points with {self._labels} labels")
        u = _checks.floats("u", u, (self._labels, self._points))
        try:
            self._logits = _host.logits(u)
        except ValueError as error:
            raise ValueError(f"u: {error}") from None

    def setUnary(self, u: Unary) -> None:
        """Unary energies from a `ConstUnary` or a `LogisticUnary`."""
        if not isinstance(u, Unary) or u.energy is None:
            raise TypeError(f"u: expected a ConstUnary or a LogisticUnary, got {type(u).__name__}")
        self.setUnaryEnergy(u.energy)

    def addPairwiseEnergy(
        self, features: Any, compat: Any, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A Gaussian kernel on features (D, points), in units of its standard deviations; D from 1 to 24.

        compat is a number w (Potts: energy -w where labels agree), a vector (labels,) (that energy where they agree),
        or a matrix (labels, labels) (the energy between all; symmetrised).
        """
        features = _checks.finite("features", _checks.floats("features", features, ("D", self._points)))
        if not 1 <= len(features) <= _checks.MAX_FEATURES:
            raise ValueError(f"features: expected 1 to {_checks.MAX_FEATURES} rows, got {len(features)}")
        self._add("addPairwiseEnergy", features.copy(), compat, kernel, normalization)

    def inference(self, n: int) -> np.ndarray:
        """Marginals (labels, points), float32, after n updates; 0 updates are the softmax of the unary alone."""
        n = _checks.count("n", n, 0)
        lattices, logits = self._ready()
        try:
            return lattices.inference(logits, self._energy(), n)
        except ValueError:  # whatever else could be wrong with the numbers is checked before
            raise ValueError("compat: the pairwise energies are beyond float32; use smaller weights") from None

    def startInference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Marginals before the first update, and the two workspaces of `stepInference`, which are not used here."""
        return self.inference(0), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: np.ndarray, tmp1: Any = None, tmp2: Any = None) -> None:
        """One update of the marginals Q (labels, points), in place."""
        if not isinstance(Q, np.ndarray) or Q.dtype.kind != "f" or not Q.flags.writeable:
            raise TypeError("Q: expected a writeable array of floats, as startInference returns it")
        lattices, logits = self._ready()
        marginals = _checks.floats("Q", Q, (self._labels, self._points))
        out = Q if Q.dtype == np.float32 and Q.flags.c_contiguous else np.empty(Q.shape, np.float32)
        try:
            lattices.update(logits, marginals, out, self._energy())
        except ValueError:
            raise ValueError("Q: expected finite marginals (or compat: smaller weights), the update is NaN") from None
        if out is not Q:
            Q[...] = out

    def klDivergence(self, Q: Any) -> float:
        """The divergence of the marginals Q (labels, points) from the CRF's distribution, up to a constant.

        ``sum Q log Q + sum U Q + sum_k Q (C_k K_k Q)``, as Kraehenbuehl's code has it: falling from step to step means
        converging.
        """
        Q = _checks.finite("Q", _checks.floats("Q", Q, (self._labels, self._points)))
        lattices, logits = self._ready()
        messages = np.empty_like(logits)
        lattices.update(None, Q, messages, self._energy())
        total = 0.0
        for row, logit, message in zip(Q, logits, messages, strict=True):
            q = row.astype(np.float64)
            energy = np.log(np.maximum(q, 1e-20)) - logit - message
            energy[q == 0] = 0  # an impossible label costs nothing where it is not taken
            total += float(q @ energy)
        return total

    def _add(self, name: str, features: np.ndarray, compat: Any, kernel: int, normalization: int) -> None:
        _choice("kernel", kernel, KernelType)
        norm = _choice("normalization", normalization, NormalizationType)
        self._terms.append(_Term(name, features, _compat_energy(compat, self._labels), norm))
        self._lattices = None

    def _ready(self) -> tuple[Any, np.ndarray]:
        """Lattices and logits, or what is missing."""
        if self._logits is None:
            raise ValueError("unary energy: not set; call setUnaryEnergy or setUnary before inference")
        if self._lattices is None:
            self._lattices = self._build()
        return self._lattices, self._logits

    def _build(self) -> Any:
        features = [term.features for term in self._terms]
        try:
            return _host.LatticeCrf(self._points, self._labels, features, [term.normalization for term in self._terms])
        except ValueError as error:
            names = ", ".join(term.name for term in self._terms)
            raise ValueError(f"{error} (terms of {names})") from None

    def _energy(self) -> np.ndarray:
        """(terms, labels) diagonals or, if any term has a matrix, (terms, labels, labels)."""
        energies = [term.energy for term in self._terms]
        if any(e.ndim == 2 for e in energies):
            return np.stack([e if e.ndim == 2 else np.diag(e) for e in energies])
        return np.stack(energies) if energies else np.empty((0, self._labels), np.float32)


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of an image; pixel (x, y) is point ``y * w + x``."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._width = _checks.count("w", w, 1)
        self._height = _checks.count("h", h, 1)
        super().__init__(self._width * self._height, nlabels)

    def addPairwiseGaussian(
        self, sxy: Any, compat: Any, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """A Gaussian kernel on position. sxy: its standard deviation in pixels, or a pair (x, y). compat: see above."""
        pixels = np.empty((self._height, self._width, 0), np.uint8)
        features = _host.image_features(pixels, _checks.positives("sxy", sxy, 2), [])
        self._add("addPairwiseGaussian", features, compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Any,
        srgb: Any,
        rgbim: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """A Gaussian kernel on position and colour.

        rgbim is (h, w, channels), of any number of channels and any real dtype; srgb, one number or one for each
        channel, is in its units.
        """
        image = _checks.numbers("rgbim", rgbim)
        if image.dtype != np.uint8:
            image = _checks.finite("rgbim", _checks.floats("rgbim", image, ("h", "w", "channels")))
        if image.ndim != 3 or image.shape[:2] != (self._height, self._width):
            raise ValueError(f"rgbim: expected shape ({self._height}, {self._width}, channels), got {image.shape}")
        channels = image.shape[2]
        if not 1 <= channels <= _checks.MAX_FEATURES - 2:
            raise ValueError(f"rgbim: expected 1 to {_checks.MAX_FEATURES - 2} channels, got {channels}")
        sigmas = _checks.positives("srgb", srgb, channels)
        features = _host.image_features(image, _checks.positives("sxy", sxy, 2), sigmas)
        self._add("addPairwiseBilateral", features, compat, kernel, normalization)


def _choice(name: str, x: Any, choices: type[IntEnum]) -> int:
    try:
        return int(choices(x))
    except ValueError:
        raise ValueError(f"{name}: expected one of {', '.join(c.name for c in choices)}, got {x!r}") from None


def _compat_energy(compat: Any, labels: int) -> np.ndarray:
    """The energies of a pair of labels: those of equal ones (labels,), or of all (labels, labels)."""
    if isinstance(compat, PottsCompatibility | DiagonalCompatibility | MatrixCompatibility):
        compat = compat.compat
    if isinstance(compat, Real):
        return _checks.finite("compat", np.full(labels, -float(compat), np.float32))
    compat = _checks.numbers("compat", compat)
    if compat.shape not in ((), (labels,), (labels, labels)):
        raise ValueError(
            f"compat: expected a number, shape ({labels},) or ({labels}, {labels}) for {labels} labels, "
            f"got {compat.shape}"
        )
    energy = _checks.finite("compat", _checks.floats("compat", compat, compat.shape))
    if energy.ndim == 2:
        return np.float32(0.5) * (energy + energy.T)
    return energy.copy() if energy.ndim else np.full(labels, -energy)


def __getattr__(name: str) -> Any:
    if name == "eigen":
        raise AttributeError("eigen: not offered, marginals are NumPy arrays and so may all arguments be")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
