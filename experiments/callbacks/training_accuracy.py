"""How well a block knows the images that it learned from: half of what overfitting is measured by."""

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from datamodules.base import ImageDataModule
from experiments.probing.features import evaluating
from losses import probabilities
from losses.errors import UsageError
from models.method import Method


class TrainingAccuracy(L.Callback):
    """Logs ``train_set/block<k>/top1`` after a block's last epoch: un-augmented training images, evaluation mode.

    Also ``train_set/top1``, the model's prediction. ``train/block<k>/top1`` is of augmented batches, while they are
    learned from; this is what ``val/…`` and ``test/…`` can be compared with. Nothing in the model changes.

    Raises:
        UsageError: a method without labels.
    """

    def setup(self, trainer: L.Trainer, pl_module: Method, stage: str) -> None:
        """See that there are labels."""
        if not pl_module.predicts_classes:
            raise UsageError(f"{type(pl_module).__name__} predicts no classes: take the callback TrainingAccuracy out.")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:
        """Evaluate, if a block has just had its last epoch."""
        if (trainer.current_epoch + 1) % (pl_module.schedule.epochs_per_block or trainer.max_epochs) == 0:
            figures = training_accuracy(pl_module, trainer.datamodule)
            pl_module.log_dict({f"train_set/{name}/top1": value for name, value in figures.items()})
            pl_module.log("train_set/top1", list(figures.values())[-1])


@torch.no_grad()
def training_accuracy(model: Method, data: ImageDataModule) -> dict[str, Tensor]:
    """Name of each block that predicts → its accuracy on the un-augmented training images, 0 … 1."""
    right: dict[str, Tensor] = {}
    with isolate_rng(), evaluating(model):
        for batch in data.training_pass(None, model.device):
            for name, logits in model.block_logits(batch.images).items():
                hits = (probabilities(logits).argmax(1) == batch.labels).sum()
                right[name] = right.get(name, 0) + hits
    return {name: hits / len(data.training_images) for name, hits in right.items()}
