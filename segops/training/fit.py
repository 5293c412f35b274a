"""Run a recipe: Lightning's Trainer with checkpoints, logs and pictures in one folder."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .criterion import class_weights
from .data import RecipeData
from .recipe import SAVED, Recipe
from .sync_batch_norm import ProcessSyncBatchNorm
from .task import SegmentationTask

LAST, BEST = "last.ckpt", "best.ckpt"


def fit(recipe: Recipe, output: Path, *, resume: bool = False, progress: bool = True) -> pl.Trainer:
    """Train, validate after each epoch, keep the best and the last weights.

    Args:
        recipe: what to do.
        output: a folder for ``recipe.yaml``, ``best.ckpt``, ``last.ckpt`` and ``logs/``; made where there is none.
        resume: go on from ``last.ckpt`` there.
        progress: show bars.

    Returns:
        Lightning's trainer, after the last epoch.

    Raises:
        DataError: for files of the data that are missing or wrong.
        ValueError: for values of the recipe that do not fit the data or the model.
        OSError: for an output folder that can't be written, a full disk say.
    """
    with quiet():
        pl.seed_everything(recipe.seed, workers=True)
        data = RecipeData(recipe)
        task = make_task(recipe, data)
        trainer = make_trainer(recipe, output, progress)
        if trainer.is_global_zero:
            output.mkdir(parents=True, exist_ok=True)
            recipe.save(output / SAVED)
        with naming_the_disk(output):
            trainer.fit(task, data, ckpt_path=output / LAST if resume else None)
    return trainer


def make_task(recipe: Recipe, data: RecipeData) -> SegmentationTask:
    """The model with its loss, from the weights of ``recipe.initial`` where that is a checkpoint."""
    weight = None
    if recipe.class_weights != "none":
        weight = class_weights(recipe.class_weights, data.train.frequencies())
    colours = data.train.colours.tolist()
    task = SegmentationTask(asdict(recipe), data.train.names, None if weight is None else weight.tolist(), colours)
    if recipe.initial is not None:
        task.model.load_state_dict(load_task(Path(recipe.initial)).model.state_dict())
    return task


def make_trainer(recipe: Recipe, output: Path, progress: bool) -> pl.Trainer:
    """Lightning's trainer for a recipe."""
    keep = partial(callbacks.ModelCheckpoint, output, enable_version_counter=False)
    best = keep(Path(BEST).stem, monitor="val/mean_iou", mode="max")
    # Of each epoch, validated or not; save_last=True of the other one would keep only the better ones.
    last = keep(Path(LAST).stem, save_on_train_epoch_end=True)
    more: list[Any] = [callbacks.LearningRateMonitor("epoch")]
    # All tensors at once; Lightning's own EMAWeightAveraging takes them one by one, which small models notice.
    more += [callbacks.WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))] if recipe.ema else []
    more += [callbacks.RichProgressBar()] if progress else []
    devices: Any = int(recipe.devices) if recipe.devices.isdigit() else recipe.devices
    try:
        return _trainer(recipe, output, progress, [best, last, *more], devices)
    except MisconfigurationException as error:
        raise ValueError(" ".join(str(error).split())) from error


def _trainer(recipe: Recipe, output: Path, progress: bool, more: list[Any], devices: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator=recipe.accelerator,
        devices=devices,
        num_nodes=recipe.nodes,
        strategy=recipe.strategy,
        precision=recipe.precision,  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        check_val_every_n_epoch=recipe.validate_every,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip or None,
        callbacks=more,
        logger=make_loggers(output),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,  # segops.training.data has samplers that know the epoch
        plugins=[ProcessSyncBatchNorm()],
        default_root_dir=output,
    )


def make_loggers(output: Path) -> list[Any]:
    """CSV, and TensorBoard where it is installed."""
    found: list[Any] = [loggers.CSVLogger(output, name="logs")]  # a new version for each time that it goes on
    try:
        found.append(loggers.TensorBoardLogger(output, name="logs"))
    except ModuleNotFoundError:
        pass
    return found


def load_task(path: Path) -> SegmentationTask:
    """A trained model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        path: a checkpoint, or the folder of a run, whose best one is taken.

    Raises:
        ValueError: for a file that is none; the message names it.
    """
    path = path / BEST if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint of 'python -m segops train', there is no such file")
    try:
        with quiet():
            return SegmentationTask.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    except Exception as error:  # whatever unpickling and Lightning make of a wrong file
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: expected a checkpoint of 'python -m segops train', {text[0]}") from error


@contextmanager
def naming_the_disk(output: Path) -> Iterator[None]:
    """Let an error of writing say what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS):
            raise
        raise OSError(error.errno, f"{output}: could not write checkpoints or logs: {error.strerror}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's tips, which a user of the command line can't follow."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for text in ("does not have many workers", "treespec", "Checkpoint directory"):
            warnings.filterwarnings("ignore", f".*{text}.*")
        yield


def final_score(trainer: pl.Trainer) -> float:
    """Mean IoU of the best epoch."""
    best = trainer.checkpoint_callback
    score = getattr(best, "best_model_score", None)
    return float("nan") if score is None else float(torch.as_tensor(score))
