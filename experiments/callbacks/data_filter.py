"""Leaving out, for an epoch, training images that a network already gets right: what all ways to do so share."""

import statistics
from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from typing_extensions import override

from datamodules.batch import Batch, Selection
from experiments.callbacks.fit_trainer import FitTrainer
from losses.errors import UsageError
from models.classification import LocalClassification
from models.method import log_epoch


class DataFilter(L.Callback, ABC):
    """Trains each epoch on some of the training images; a subclass says on which.

    Every image has a score, renewed whenever it is seen, that goes into checkpoints. Logged: ``train/dropped``, the
    share of the images that the epoch left out, and ``train/saved``, that share over all epochs so far. Epochs have
    different numbers of batches.

    Raises:
        UsageError: there are no labels, blocks learn from something else than a loss per image, schedules count steps,
            or there are several processes.
    """

    changes_training = True

    def __init__(self) -> None:
        self._scores = torch.zeros(0)  # (N,), of all training images once the first was seen
        self._visits = 0  # of images, in this epoch
        self._dropped: list[float] = []  # share, of every epoch so far

    @abstractmethod
    def scores(self, model: LocalClassification, batch: Batch, earlier: Tensor) -> Tensor:
        """New float32 scores ``(B,)`` of a batch's images; ``earlier`` are those that they had, at first 0."""

    @abstractmethod
    def choose(self, scores: Tensor, done: int, epochs: int, generator: torch.Generator) -> Selection | None:
        """The images of the next epoch; None for all.

        Args:
            scores: of all images, ``(N,)``.
            done: epochs that are over; of the next epoch's block, if blocks learn one after the other.
            epochs: how many there are, likewise.
            generator: for what is drawn, the same in a resumed run.
        """

    @override
    def setup(self, trainer: FitTrainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        name = type(self).__name__
        if not isinstance(pl_module, LocalClassification):
            raise UsageError(f"{name} judges images by what is predicted of them: use a method with labels.")
        pl_module.require_shared_batch(name)
        if pl_module.make_scheduler and pl_module.scheduler_interval == "step":
            raise UsageError(
                f"{name} makes epochs shorter: a schedule that counts steps would not come to its end. Use "
                "--model.scheduler_interval epoch."
            )
        if trainer.world_size > 1:
            raise UsageError(f"{name} knows the images of its own process only: use --trainer.devices 1.")
        if trainer.datamodule.labels:
            raise UsageError(f"{name} chooses among all training images: leave --data.labels out.")
        trainer.datamodule.reload_every_epoch()

    @override
    def on_train_batch_end(
        self, trainer: FitTrainer, pl_module: LocalClassification, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if set(pl_module.logits_of) != set(pl_module.learners):
            name = type(self).__name__
            raise UsageError(
                f"{name} leaves out images by the loss of their prediction, but {type(pl_module).__name__} has a "
                f"local_loss of its own: leave {name} out, or choose another method, such as DecoupledGreedy."
            )
        if not len(self._scores):
            self._scores = torch.zeros(len(trainer.datamodule.training_images), device=batch.labels.device)
        self._scores[batch.indices] = self.scores(pl_module, batch, self._scores[batch.indices])
        self._visits += len(batch.labels)

    @override
    def on_train_epoch_end(self, trainer: FitTrainer, pl_module: LocalClassification) -> None:
        data = trainer.datamodule
        done, epochs = pl_module.schedule.turn(trainer.current_epoch + 1, trainer.max_epochs)
        self._dropped.append(1 - self._visits / len(self._scores))
        self._visits = 0
        log_epoch(pl_module, {"train/dropped": self._dropped[-1], "train/saved": statistics.mean(self._dropped)})
        generator = torch.Generator().manual_seed(trainer.global_step + data.seed)
        data.select(self.choose(self._scores.cpu(), done, epochs, generator))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"scores": self._scores, "visits": self._visits, "dropped": self._dropped}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scores, self._visits, self._dropped = state_dict["scores"], state_dict["visits"], state_dict["dropped"]
