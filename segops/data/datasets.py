"""Data sets of photos and masks, on disk or drawn: uint8 tensors, checked, each item with one clear error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import _checks
from ..viz import palette as palette_of
from .files import DataError, read_image, read_mask
from .layouts import KNOWN, LAYOUTS, detect, find
from .scenes import SCENES, scene

Pair = tuple[Tensor, Tensor]
# Changes an item of training; the numbers seed what is drawn, so that no order of workers or processes matters.
Augmentation = Callable[[Tensor, Tensor, Sequence[int]], Pair]


class SegmentationData(Dataset[Pair], ABC):
    """What all data sets share: names of classes, colours, and items that are resized and augmented.

    Args:
        names: of the classes; their number is the number of classes.
        colours: uint8 ``(classes, 3)``.
        size: rows and columns that photos are resized to. Default: as they are. Masks are resized only in training.
        augment: what is done to items in training; items of training are asked for by (epoch, index).
        seed: of the augmentation.
        cache: keep photos and masks in memory once they are read and resized. Default no.

    An item is a photo, uint8 ``(3, H, W)``, and a mask, uint8 ``(h, w)``, 255 where a pixel is to be ignored.
    """

    def __init__(
        self,
        names: Sequence[str],
        colours: np.ndarray,
        size: Sequence[int] | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        cache: bool = False,
    ):
        if len(names) > 255:
            raise ValueError(f"names: expected at most 255 classes, a mask has a byte for each pixel, got {len(names)}")
        self.names, self.colours, self.augment, self.seed = list(names), colours, augment, seed
        self.size = None if size is None else _checks.pair("size", size, 1)
        self.cache, self._cached = cache, dict[int, Pair]()

    @abstractmethod
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photo and mask as they are stored."""

    def labels(self, index: int) -> np.ndarray:
        """The mask alone."""
        return self.read(index)[1]

    def title(self, index: int) -> str:
        """What an item is called."""
        return f"{index:05d}"

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, key: int | tuple[int, int]) -> Pair:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pair = self._cached.get(index) or self._sized(index)
        if self.cache:
            self._cached[index] = pair
        return pair if self.augment is None else self.augment(*pair, (self.seed, epoch, index))

    def _sized(self, index: int) -> Pair:
        photo, labels = self.read(index)
        image, target = torch.from_numpy(photo).permute(2, 0, 1).contiguous(), torch.from_numpy(labels)
        if self.size is not None:
            image = resized(image, self.size)
            target = target if self.augment is None else resized(target, self.size)
        return image, target

    def frequencies(self) -> Tensor:
        """Pixels of each class, and of the photos that have it: int64 ``(2, classes)``."""
        total = torch.zeros(2, len(self.names), dtype=torch.int64)
        for index in range(len(self)):
            labels = torch.from_numpy(self.labels(index))
            pixels = labels[labels != 255].flatten().bincount(minlength=len(self.names))
            total += torch.stack([pixels, (pixels > 0) * pixels.sum()])
        return total


class Scenes(SegmentationData):
    """Drawn streets, see :func:`segops.data.scenes.scene`: 64 for training, 16 each for ``val`` and ``test``.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        **options: of :class:`SegmentationData`.

    Raises:
        ValueError: for another split.

    Example:
        >>> from segops.data.datasets import Scenes
        >>> image, target = Scenes("val")[0]
        >>> image.shape, target.shape
        (torch.Size([3, 96, 128]), torch.Size([96, 128]))
    """

    COUNTS = {"train": 64, "val": 16, "test": 16}

    def __init__(self, split: str = "train", **options: Any):
        _checks.choice("split", split, tuple(self.COUNTS))
        super().__init__(SCENES, palette_of("distinct", len(SCENES)), **options)
        self.split = split

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return scene(index, seed=tuple(self.COUNTS).index(self.split))

    def __len__(self) -> int:
        return self.COUNTS[self.split]


class Folder(SegmentationData):
    """Photos and masks of a folder.

    Args:
        root: of the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        layout: ``"folder"`` (``train/images/NAME.jpg`` and ``train/masks/NAME.png``, names of classes one a line in
            ``classes.txt``), ``"voc"``, ``"cityscapes"`` or ``"ade20k"``, as they are unpacked. Default ``"auto"``.
        names: of the classes, or ``"camvid"``, ``"voc"``, ``"cityscapes"``. Default: those of the layout; of a folder
            without ``classes.txt``, numbers up to the largest label of ``train``.
        **options: of :class:`SegmentationData`.

    Raises:
        DataError: for a file or folder that is missing, or a mask that does not fit its photo or has a label that
            there is not; the message begins with its path.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        layout: str = "auto",
        names: str | Sequence[str] | None = None,
        **options: Any,
    ):
        self.root = Path(root)
        self.layout = LAYOUTS[detect(self.root) if layout == "auto" else _checks.choice("layout", layout, [*LAYOUTS])]
        self.samples = find(self.root, split, self.layout)
        if isinstance(names, str):
            names = KNOWN[_checks.choice("names", names, [*KNOWN])]
        names = list(names or self.layout.names(self.root) or self._guess())
        known = [name for name, classes in KNOWN.items() if list(classes) == names]
        colours = known[0] if known else self.layout.palette
        super().__init__(names, palette_of(colours, len(names)), **options)

    def _guess(self) -> Sequence[str]:
        train = find(self.root, "train", self.layout) if (self.root / "train").is_dir() else self.samples
        labels = [read_mask(sample.mask, table=self.layout.table) for sample in train]
        most = max((int(x[x != 255].max(initial=0)) for x in labels), default=0)
        return [f"class_{i}" for i in range(most + 1)]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.samples[index]
        photo, labels = read_image(sample.image), self.labels(index)
        if photo.shape[:2] != labels.shape:
            raise DataError(
                f"{sample.mask}: expected {photo.shape[0]} x {photo.shape[1]} pixels like {sample.image.name}, got "
                f"{labels.shape[0]} x {labels.shape[1]}"
            )
        return photo, labels

    def labels(self, index: int) -> np.ndarray:
        return read_mask(self.samples[index].mask, len(self.names), table=self.layout.table)

    def title(self, index: int) -> str:
        return self.samples[index].image.stem

    def __len__(self) -> int:
        return len(self.samples)


def open_data(root: str | Path, split: str, **options: Any) -> SegmentationData:
    """``"scenes"``: the drawn ones; anything else: a folder."""
    if str(root) != "scenes":
        return Folder(root, split, **options)
    options = {name: value for name, value in options.items() if name not in ("layout", "names")}
    return Scenes(split, **options)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """A photo bilinearly with antialiasing, a mask to the nearest label."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    if x.dim() == 3:
        return functional.resize(x, list(size), antialias=True)
    return functional.resize(x[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0]
