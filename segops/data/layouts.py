"""Where data sets keep their pictures and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import IMAGES, DataError

CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow dining_table dog horse motorbike person "
    "potted_plant sheep sofa train tv_monitor"
).split()
CITYSCAPES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
).split()
KNOWN = {"camvid": CAMVID, "voc": VOC, "cityscapes": CITYSCAPES}
# Cityscapes' labels of training, by the identifiers of its *_labelIds.png; all others are ignored.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_SPLITS_OF_ADE20K = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Sample:
    """A picture and its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk."""

    sign: str  # a path below the root by which it is known
    samples: Callable[[Path, str], list[Sample]]
    names: Callable[[Path], list[str] | None]
    palette: str
    table: np.ndarray | None = None  # what the numbers of a mask stand for


def _folder(root: Path, split: str) -> list[Sample]:
    images = pictures(_existing(root / split / "images"))
    return [Sample(path, root / split / "masks" / f"{path.stem}.png") for path in images]


def _voc(root: Path, split: str) -> list[Sample]:
    stems = _existing(root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    return [Sample(root / "JPEGImages" / f"{s}.jpg", root / "SegmentationClass" / f"{s}.png") for s in stems]


def _cityscapes(root: Path, split: str) -> list[Sample]:
    images = sorted(_existing(root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    masks = root / "gtFine" / split
    return [
        Sample(path, masks / path.parent.name / path.name.replace("_leftImg8bit", "_gtFine_labelIds"))
        for path in images
    ]


def _ade20k(root: Path, split: str) -> list[Sample]:
    folder = _SPLITS_OF_ADE20K.get(split, split)
    images = pictures(_existing(root / "images" / folder))
    return [Sample(path, root / "annotations" / folder / f"{path.stem}.png") for path in images]


def _names_of_folder(root: Path) -> list[str] | None:
    path = root / "classes.txt"
    return path.read_text().split() if path.is_file() else None


def _names_of_ade20k(root: Path) -> list[str] | None:
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return [f"class_{i}" for i in range(150)]
    rows = path.read_text().splitlines()[1:]
    return [row.split("\t")[-1].split(",")[0].strip().replace(" ", "_") for row in rows]


def _table(labels: dict[int, int]) -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    for number, label in labels.items():
        table[number] = label
    return table


LAYOUTS = {
    "folder": Layout("train/images", _folder, _names_of_folder, "distinct"),
    "voc": Layout("SegmentationClass", _voc, lambda root: VOC, "voc"),
    "cityscapes": Layout(
        "leftImg8bit",
        _cityscapes,
        lambda root: CITYSCAPES,
        "cityscapes",
        _table({number: label for label, number in enumerate(_CITYSCAPES_IDS)}),
    ),
    "ade20k": Layout(
        "annotations", _ade20k, _names_of_ade20k, "ade20k", _table({label + 1: label for label in range(150)})
    ),
}


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def detect(root: Path) -> str:
    """The layout of a folder.

    Raises:
        DataError: for a folder that has none of them, or that there is not.
    """
    _existing(root)
    for name, layout in LAYOUTS.items():
        if (root / layout.sign).exists():
            return name
    if any((root / split / "images").is_dir() for split in ("val", "test")):
        return "folder"
    raise DataError(
        f"{root}: expected train/images and train/masks (also val, test), or the folders of Pascal VOC, Cityscapes or "
        "ADE20K; found none of them"
    )


def find(root: Path, split: str, layout: Layout) -> list[Sample]:
    """The samples of a split, at least one.

    Raises:
        DataError: for a split without pictures, or a picture without a mask.
    """
    samples = layout.samples(root, split)
    if not samples:
        raise DataError(f"{root}: expected pictures of the split {split!r}, found none")
    for sample in samples:
        for path, kind in ((sample.image, "picture"), (sample.mask, f"mask of {sample.image.name}")):
            if not path.is_file():
                raise DataError(f"{path}: expected the {kind}, there is no such file")
    return samples


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"{path}: expected a file or folder of the data set, there is none")
    return path
