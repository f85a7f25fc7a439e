"""How well a block knows the images that it learned from: half of what overfitting is measured by."""

from collections import defaultdict

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from datamodules.base import ImageDataModule
from experiments.callbacks.fit_trainer import FitTrainer
from experiments.probing.features import evaluating
from losses import probabilities
from losses.errors import UsageError
from models.method import Method, log_epoch


class TrainingAccuracy(L.Callback):
    """Logs ``train_set/block<k>/top1`` after a block's last epoch: un-augmented training images, evaluation mode.

    Also ``train_set/top1``, the model's prediction. ``train/block<k>/top1`` is of augmented batches, while they are
    learned from; this is what ``val/…`` and ``test/…`` can be compared with. Nothing in the model changes.

    Raises:
        UsageError: a method without labels.
    """

    @override
    def setup(self, trainer: FitTrainer, pl_module: Method, stage: str) -> None:
        if not pl_module.predicts_classes:
            raise UsageError(f"{type(pl_module).__name__} predicts no classes: take the callback TrainingAccuracy out.")

    @override
    def on_train_epoch_end(self, trainer: FitTrainer, pl_module: Method) -> None:
        epoch, epochs = pl_module.schedule.turn(trainer.current_epoch, trainer.max_epochs)
        if (epoch + 1) % epochs == 0:
            accuracies = training_accuracy(pl_module, trainer.datamodule)
            metrics = {f"train_set/{name}/top1": share for name, share in accuracies.items()}
            log_epoch(pl_module, metrics | {"train_set/top1": list(accuracies.values())[-1]})


@torch.no_grad()
def training_accuracy(model: Method, data: ImageDataModule) -> dict[str, Tensor]:
    """Name of each block that predicts → its accuracy on the un-augmented training images, 0 … 1."""
    right: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.int64, device=model.device))
    with isolate_rng(), evaluating(model):
        for batch in data.training_pass(None, model.device):
            for name, logits in model.block_logits(batch.images).items():
                right[name] += (probabilities(logits).argmax(1) == batch.labels).sum()
    return {name: hits / len(data.training_images) for name, hits in right.items()}
