"""What a training run is: every choice in one flat record, from YAML or the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SAVED = "recipe.yaml"  # the name of its file, beside the checkpoints
OPTIMIZERS = ("sgd", "adamw")
CLASS_WEIGHTS = ("none", "median_frequency", "log_frequency")


def _told(default: Any, text: str) -> Any:
    """A field with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """A training run. Every field is an option of ``python -m segops train`` and a key of its YAML.

    Raises:
        ValueError: for a value that there can't be, by its name.

    Example:
        >>> from segops.training import Recipe
        >>> Recipe(model="fcn", epochs=2).epochs
        2
    """

    model: str = _told("espnet", "Name of the model: see 'python -m segops models'.")
    model_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the model: encoder=resnet18, output_stride=16."}
    )
    data: str = _told("scenes", "Folder of the data set; scenes: drawn streets, which need no download.")
    layout: str = _told("auto", "Layout of the folder: folder, voc, cityscapes, ade20k or auto.")
    names: str | None = _told(None, "Names of the classes: camvid, voc, cityscapes, or sky,road,tree.")
    size: tuple[int, int] | None = _told(None, "Rows and columns that photos are resized to, first of all.")
    crop: tuple[int, int] | None = _told(None, "Rows and columns of the crops. Default: --size, or the first photo's.")
    batch_size: int = _told(8, "Crops in a step, of all processes together, before --accumulate.")
    epochs: int = _told(30, "How often all photos are seen.")
    optimizer: str = _told("adamw", "sgd or adamw.")
    lr: float = _told(2e-3, "Learning rate at its highest.")
    momentum: float = _told(0.9, "Of sgd.")
    weight_decay: float = _told(1e-4, "Of weights; biases and normalisations have none.")
    power: float = _told(0.9, "Of the schedule: lr * (1 - step / steps) ** power.")
    warmup: int = _told(0, "Steps in which the learning rate rises from zero.")
    scale: tuple[float, float] = _told((0.5, 2.0), "Least and largest factor of the scale jitter.")
    flip: float = _told(0.5, "Probability of a mirror.")
    max_class_ratio: float = _told(0.75, "A crop with more of one class is drawn again.")
    jitter: float = _told(0.5, "Probability of changes of light and colour.")
    distortion: tuple[float, float, float, float] = _told(
        (0.125, 0.5, 0.5, 0.05), "Largest changes of brightness, contrast, saturation and hue."
    )
    loss: str = _told("cross_entropy", "Losses and their weights: cross_entropy+0.5*lovasz_softmax.")
    class_weights: str = _told("none", "none, median_frequency (SegNet) or log_frequency (ESPNet).")
    ema: float = _told(0.0, "Decay of the average of the weights that is evaluated and saved. 0: none.")
    clip: float = _told(0.0, "Largest norm of the gradient. 0: any.")
    accumulate: int = _told(1, "Batches whose gradients are summed for a step.")
    initial: str | None = _told(None, "Checkpoint whose weights to start from: fine-tuning.")
    validate_every: int = _told(1, "Epochs from one validation to the next; a divisor of --epochs.")
    seed: int = _told(0, "Of weights, order and augmentation.")
    cache: bool = _told(False, "Keep resized photos in memory once they are read, in each process that loads.")
    workers: int = _told(1, "Processes that load data, for each that trains; 0: none.")
    accelerator: str = _told("auto", "Of Lightning: auto, cpu, cuda, mps.")
    devices: str = _told("auto", "Of Lightning: how many, or which: auto, 2, 0,1.")
    nodes: int = _told(1, "Machines.")
    strategy: str = _told("auto", "Of Lightning: auto, ddp.")
    precision: str = _told("32-true", "Of Lightning: 32-true, bf16-mixed, 16-mixed.")

    def __post_init__(self) -> None:
        from .. import _checks  # it imports torch, which the help of the command line does without

        for name in ("batch_size", "epochs", "accumulate", "nodes", "validate_every"):
            _checks.count(name, getattr(self, name), 1)
        for name in ("warmup", "workers", "seed"):
            _checks.count(name, getattr(self, name))
        for f in fields(self):
            if f.type in ("str", "str | None") and not isinstance(getattr(self, f.name), str | None):
                raise TypeError(f"{f.name}: expected text, got {getattr(self, f.name)!r}")
        if not isinstance(self.cache, bool):
            raise TypeError(f"cache: expected true or false, got {self.cache!r}")
        if not isinstance(self.model_options, Mapping):
            raise TypeError(f"model_options: expected names and values, got {self.model_options!r}")
        for name, count in (("size", 2), ("crop", 2), ("scale", 2), ("distortion", 4)):
            value, optional = getattr(self, name), name in ("size", "crop")
            if value is None and optional:
                continue
            if not (isinstance(value, tuple | list) and len(value) == count):
                raise ValueError(f"{name}: expected {count} numbers, got {value!r}")
            if optional:
                _checks.pair(name, value, 1)
        for name in ("lr", "power"):
            _checks.positive(name, getattr(self, name))
        for name in ("momentum", "weight_decay", "ema", "clip"):
            if not 0 <= _checks.finite(name, getattr(self, name)):
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        if self.ema >= 1 or self.momentum >= 1:
            raise ValueError(f"ema, momentum: expected numbers below 1, got {self.ema} and {self.momentum}")
        if self.epochs % self.validate_every:
            raise ValueError(f"validate_every: expected a divisor of {self.epochs} epochs, got {self.validate_every}")
        _checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        _checks.choice("class_weights", self.class_weights, CLASS_WEIGHTS)

    def class_names(self) -> str | list[str] | None:
        """What ``names`` stands for: a data set, or a list."""
        return self.names.split(",") if self.names is not None and "," in self.names else self.names

    def save(self, path: Path) -> None:
        """Write YAML."""
        import yaml

        plain = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
        path.write_text(yaml.safe_dump(plain, sort_keys=False))


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as YAML and checkpoints have them.

    Raises:
        ValueError: for a name that a recipe does not have.
    """
    known = [f.name for f in fields(Recipe)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=2) or known
            raise ValueError(f"{name}: a recipe has no such value; near: {', '.join(near)}")
    plain: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    return Recipe(**plain)


def load_values(path: Path) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        ValueError: for a file that is no YAML mapping; the message names it.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected a recipe in YAML, {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected names and values in YAML, got {type(values).__name__}")
    return values
