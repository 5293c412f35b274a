"""A model with its loss, its schedule and its metric: what Lightning trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ..data.augment import normalized
from ..metrics import ConfusionMatrix, mean_iou
from ..models import create_model
from ..models.model import resize
from .criterion import criterion
from .recipe import from_mapping


class SegmentationTask(pl.LightningModule):
    """A model of :func:`segops.models.create_model` in training.

    Args:
        recipe: values of a :class:`segops.training.Recipe`; they are saved in checkpoints, like the other arguments.
        names: of the classes.
        class_weight: of the losses, one for each class. Default: none.
        colours: of the classes, (r, g, b) from 0 to 255.

    Shape:
        photos, uint8 ``(N, 3, H, W)``, to logits ``(N, K, H, W)``.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        names: Sequence[str],
        class_weight: Sequence[float] | None = None,
        colours: Sequence[Sequence[int]] = (),
    ):
        super().__init__()
        self.save_hyperparameters()
        self.recipe, self.names = from_mapping(recipe), list(names)
        self.colours = colours
        self.model: Any = create_model(self.recipe.model, **{"num_classes": len(names), **self.recipe.model_options})
        self.model.to(memory_format=torch.channels_last)  # the faster layout, on CPUs and on GPUs
        weight = None if class_weight is None else torch.tensor(class_weight)
        self.criterion: Any = criterion(self.recipe.loss, weight)
        self.matrix = ConfusionMatrix(len(names))

    def forward(self, photo: Tensor) -> Any:
        return self.model(normalized(photo).contiguous(memory_format=torch.channels_last))

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Dropout draws the same numbers in a batch whether or not the run was interrupted before it."""
        torch.manual_seed(hash((self.recipe.seed, self.current_epoch, index, self.global_rank)))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        photo, target = batch
        maps = self(photo)
        loss = self.model.loss(maps, target.long(), self.criterion)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(photo))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Count right and wrong pixels, at the size of the mask."""
        photo, target = batch
        logits = resize(self(photo).float(), target.shape[-2:])
        self.matrix.update(logits, target)

    def on_validation_epoch_start(self) -> None:
        """Forget the counts of the last time."""
        self.matrix.reset()

    def on_validation_epoch_end(self) -> None:
        """Mean IoU over the photos of all processes."""
        score = mean_iou(self.matrix.sync().compute())
        self.log("val/mean_iou", score.float(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """SGD or AdamW under the polynomial schedule, step by step."""
        recipe = self.recipe
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        # Elsewhere torch chooses well; on a CPU it would loop over the tensors. With mixed precision Lightning can't
        # clip gradients for a fused one, which may scale them itself.
        fused = (self.device.type == "cpu" and "mixed" not in recipe.precision) or None
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
        else:
            optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
        steps = max(1, int(self.trainer.estimated_stepping_batches))

        def factor(step: int) -> float:
            rising = min(1.0, (step + 1) / (recipe.warmup + 1))
            return rising * max(0.0, 1 - step / steps) ** recipe.power

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
