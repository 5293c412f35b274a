"""Loaders of a recipe's data, for one process or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..data.augment import Augmentation
from ..data.datasets import SegmentationData, open_data
from .recipe import Recipe


class EpochSampler(DistributedSampler):
    """The order of an epoch, the same for any number of processes, and the epoch with each index: what is drawn for an
    item depends on the seed, the epoch and the item alone. Lightning sets the epoch, after a resume too."""

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


def open_split(recipe: Recipe, split: str, names: Sequence[str] | None = None) -> SegmentationData:
    """A split of a recipe's data, photos resized, without augmentation; names of classes where they are known."""
    return open_data(
        recipe.data,
        split,
        layout=recipe.layout,
        names=recipe.class_names() if names is None else names,
        size=recipe.size,
        seed=recipe.seed,
    )


class RecipeData(pl.LightningDataModule):
    """Crops for training, whole photos for validation and test.

    Args:
        recipe: what data, and how it is changed.

    Raises:
        DataError: for folders that do not hold what they should.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.train = open_split(recipe, "train")
        size = recipe.crop or recipe.size or self.train.read(0)[1].shape
        self.train.augment = Augmentation(
            size,
            scale=recipe.scale,
            flip=recipe.flip,
            max_class_ratio=recipe.max_class_ratio,
            jitter=recipe.jitter,
            distortion=recipe.distortion,
        )
        self.val = open_split(recipe, "val", self.train.names)
        self.train.cache = self.val.cache = recipe.cache

    def _processes(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"num_replicas": 1, "rank": 0}
        return {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}

    def train_dataloader(self) -> DataLoader:
        """Crops, in an order of the epoch."""
        where, whole = self._processes(), self.recipe.batch_size
        processes = where["num_replicas"]
        if whole % processes:
            raise ValueError(f"batch_size: expected a multiple of the {processes} processes, got {whole}")
        sampler = EpochSampler(self.train, shuffle=True, seed=self.recipe.seed, **where)
        batch = whole // processes
        # The last, smaller batch is left out where there is another one: statistics of few crops are poor.
        return self._loader(self.train, sampler, batch, drop_last=len(sampler) >= batch)

    def val_dataloader(self) -> DataLoader:
        """Photos one by one, since each may have its own size; no process sees one that another has."""
        sampler = UnrepeatedDistributedSampler(self.val, shuffle=False, **self._processes())
        return self._loader(self.val, sampler, 1)

    def _loader(self, data: Dataset, sampler: Any, batch_size: int, **how: Any) -> DataLoader:
        return DataLoader(
            data,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.recipe.workers,
            persistent_workers=self.recipe.workers > 0,
            pin_memory=torch.cuda.is_available(),
            **how,
        )
