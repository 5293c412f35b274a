"""The golden cases of the dense CRF as arguments of segops.mean_field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {k: file[k] for k in file.files}
    if "params_json" in arrays:
        arrays["params"] = json.loads(str(arrays.pop("params_json")))
    return arrays


def names(pattern: str) -> list[str]:
    return sorted(p.stem for p in FOLDER.glob(f"{pattern}.npz"))


def image_features(image: np.ndarray, sxy, srgb=None) -> torch.Tensor:
    """(1, 2 or 5, P): x, y and colour over their sigmas, in float32 as the peers do."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    maps = [x / np.float32(sxy[0]), y / np.float32(sxy[1])]
    if srgb is not None:
        maps += [image[..., c].astype(np.float32) / np.float32(srgb[c]) for c in range(image.shape[2])]
    return torch.from_numpy(np.stack([m.reshape(-1) for m in maps]))[None]


def energy(compat, labels: int) -> torch.Tensor:
    """pydensecrf's meaning of a compatibility, as an energy matrix."""
    compat = torch.as_tensor(compat, dtype=torch.float32)
    if compat.dim() == 0:
        return -compat * torch.eye(labels)
    if compat.dim() == 1:
        return torch.diag(compat)
    return 0.5 * (compat + compat.T)


@dataclass
class Crf:
    """One of the crf_pyd_* files."""

    logits: torch.Tensor  # (1, L, P)
    features: list[torch.Tensor]
    compatibility: torch.Tensor  # (K, L, L)
    normalization: str
    arrays: dict

    @property
    def iterations(self) -> list[int]:
        return self.arrays["params"]["iterations"]

    def arguments(self, dtype: torch.dtype = torch.float32) -> dict:
        return {
            "logits": self.logits.to(dtype),
            "features": [f.to(dtype) for f in self.features],
            "weights": [1.0] * len(self.features),
            "compatibility": self.compatibility.to(dtype),
            "normalization": self.normalization,
        }


def crf(name: str) -> Crf:
    arrays = load(name)
    params, unary = arrays["params"], arrays["unary"]
    labels = unary.shape[0]
    if "gaussian" in params:
        kernels = [params[k] for k in ("gaussian", "bilateral") if params[k]]
        features = [image_features(arrays["image"], k["sxy"], k.get("srgb")) for k in kernels]
        compat = [k["compat"] for k in kernels]
    else:
        features = [torch.from_numpy(arrays[f"feats{i}"])[None] for i in range(len(params["d"]))]
        compat = params["compat"]
    return Crf(
        logits=-torch.from_numpy(unary).reshape(1, labels, -1),
        features=features,
        compatibility=torch.stack([energy(c, labels) for c in compat]),
        normalization=params["normalization"],
        arrays=arrays,
    )
