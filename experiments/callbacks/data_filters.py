"""Leaving out, for an epoch, training images that a network already gets right: InfoBatch, and all it is sure of."""

import statistics
from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from datamodules.batch import Batch, Selection
from losses import probabilities
from losses.errors import UsageError
from models.classification import LocalClassification


class DataFilter(L.Callback, ABC):
    """Trains each epoch on some of the training images; a subclass says on which.

    Every image has a score, renewed whenever it is seen, that goes into checkpoints. Logged: ``train/dropped``, the
    share of the images that the epoch left out, and ``train/saved``, that share over all epochs so far.
    """

    changes_training = True

    def __init__(self) -> None:
        self._scores: Tensor | None = None
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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See that images have labels; epochs will have different numbers of batches.

        Raises:
            UsageError: there are no labels, or several processes.
        """
        if stage == "fit":
            name = type(self).__name__
            if not isinstance(pl_module, LocalClassification):
                raise UsageError(f"{name} judges images by what is predicted of them: use a method with labels.")
            if trainer.world_size > 1:
                raise UsageError(f"{name} knows the images of its own process only: use --trainer.devices 1.")
            trainer.datamodule.reload_every_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LocalClassification, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the scores.

        Raises:
            UsageError: blocks that learn from something else than a loss per image.
        """
        if set(pl_module.logits_of) != set(pl_module.learners):
            raise UsageError(
                f"{type(self).__name__} leaves out images by their losses; {type(pl_module).__name__} blocks do not "
                "learn from these alone."
            )
        if self._scores is None:
            self._scores = torch.zeros(len(trainer.datamodule.training_images), device=batch.labels.device)
        self._scores[batch.indices] = self.scores(pl_module, batch, self._scores[batch.indices])
        self._visits += len(batch.labels)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: LocalClassification) -> None:
        """Choose the images of the next epoch."""
        data, epochs, done = trainer.datamodule, trainer.max_epochs, trainer.current_epoch + 1
        if per_block := pl_module.schedule.epochs_per_block:
            epochs, done = per_block, done % per_block
        self._dropped.append(1 - self._visits / len(self._scores))
        self._visits = 0
        pl_module.log_dict({"train/dropped": self._dropped[-1], "train/saved": statistics.mean(self._dropped)})
        generator = torch.Generator().manual_seed(trainer.global_step + data.seed)
        data.select(self.choose(self._scores.cpu(), done, epochs, generator))

    def state_dict(self) -> dict[str, Any]:
        """Scores and counts."""
        return {"scores": self._scores, "visits": self._visits, "dropped": self._dropped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's."""
        self._scores, self._visits, self._dropped = state_dict["scores"], state_dict["visits"], state_dict["dropped"]


class InfoBatch(DataFilter):
    """Trains each epoch without a random half of the images whose last loss was below the mean.

    Z. Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR 2024). Nothing is
    dropped in the first epoch, and in the last ones, to even out what chance did. An image's score is its last loss,
    averaged over the blocks that learn; blocks that learn one after the other begin anew.

    Args:
        ratio: r, the share of images below the mean that is dropped.
        until: share δ of the epochs (of each block, if they learn one after the other) with dropping.

    Raises:
        UsageError: shares that are none.
    """

    def __init__(self, ratio: float = 0.5, until: float = 0.875) -> None:
        super().__init__()
        if not 0 < ratio < 1 or not 0 < until <= 1:
            raise UsageError(
                f"InfoBatch drops a share below 1 until a share of the epochs, both above 0, not {ratio}, {until}."
            )
        self.ratio, self.until = ratio, until

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See that an epoch can drop images.

        Raises:
            UsageError: all epochs are the first ones or the last, which see all images.
        """
        super().setup(trainer, pl_module, stage)
        epochs, least = pl_module.schedule.epochs_per_block or trainer.max_epochs, max(2, int(1 / self.until) + 1)
        if stage == "fit" and not trainer.fast_dev_run and epochs < least:
            whose = "epochs_per_block" if pl_module.schedule.epochs_per_block else "trainer.max_epochs"
            raise UsageError(
                f"InfoBatch needs {whose} of at least {least}, not {epochs}: the first epoch sees all images, and so "
                f"do those behind the share until = {self.until:g} of them."
            )

    def scores(self, model: LocalClassification, batch: Batch, earlier: Tensor) -> Tensor:
        """Losses ``(B,)``."""
        return torch.stack([model.checked_losses(z, batch.labels) for z in model.logits_of.values()]).mean(0).float()

    def choose(self, scores: Tensor, done: int, epochs: int, generator: torch.Generator) -> Selection | None:
        """A random choice of those below the mean, but for the first and the last epochs."""
        return infobatch(scores, self.ratio, generator) if 0 < done < self.until * epochs else None


def infobatch(losses: Tensor, ratio: float, generator: torch.Generator) -> Selection:
    """Drop a random share of the images whose loss is below the mean; weigh what is kept of them up.

    The weighted losses of an epoch then sum, in expectation, to those of all images, and so do the gradients.

    Args:
        losses: last loss of every image, float ``(N,)``.
        ratio: share r of the images below the mean that is dropped.
        generator: draws which.
    """
    below = (losses < losses.mean()).nonzero().squeeze(1)
    dropped = below[torch.randperm(len(below), generator=generator)[: int(ratio * len(below))]]
    keep, weights = torch.ones(len(losses), dtype=torch.bool), torch.ones(len(losses))
    keep[dropped] = False
    if len(dropped):
        weights[below] = len(below) / (len(below) - len(dropped))  # not 1 / (1 − r): exact after rounding too
    return Selection(keep.nonzero().squeeze(1), weights)


class DropConfident(DataFilter):
    """Trains each epoch without the images that every learning block has been sure of several times in turn.

    Our reading of A. Øland, "Efficient Deep Learning" (PhD thesis, CMU-CS-24-147, 2024), whose text was not available:
    examples become redundant while a network learns, and many can be dropped. Every few epochs all images are seen
    again, so that what was forgotten comes back. A block that learns after another one begins without the images that
    the one before was sure of. Unlike with InfoBatch nothing is weighed up: the sum of the losses changes.

    Args:
        threshold: p of the true class above which a block is sure.
        patience: successive visits at which it must have been.
        rescore_every: see all images every so many epochs (of each block, but for its first).
        least: see at least so many images, the least sure ones.

    Raises:
        UsageError: a threshold that is no probability, or counts below 1.
    """

    def __init__(self, threshold: float = 0.99, patience: int = 3, rescore_every: int = 5, least: int = 256) -> None:
        super().__init__()
        if not 0 < threshold < 1 or min(patience, rescore_every, least) < 1:
            raise UsageError(
                "DropConfident needs a threshold between 0 and 1, and patience, rescore_every and least of at least 1, "
                f"not {threshold}, {patience}, {rescore_every}, {least}."
            )
        self.threshold, self.patience, self.rescore_every, self.least = threshold, patience, rescore_every, least

    def scores(self, model: LocalClassification, batch: Batch, earlier: Tensor) -> Tensor:
        """Visits in turn, ``(B,)``, at which all learning blocks were sure."""
        true = [probabilities(z).gather(1, batch.labels[:, None]) for z in model.logits_of.values()]
        return (earlier + 1) * (torch.cat(true, dim=1).amin(1) > self.threshold)

    def choose(self, scores: Tensor, done: int, epochs: int, generator: torch.Generator) -> Selection | None:
        """Those that are not sure yet, or all."""
        return None if done and done % self.rescore_every == 0 else not_sure(scores, self.patience, self.least)


def not_sure(visits: Tensor, patience: int, least: int) -> Selection:
    """The images that were sure at fewer than ``patience`` visits in turn, but at least ``least`` images.

    Args:
        visits: in turn, at which each image was sure, ``(N,)``.
        patience: at so many an image is left out.
        least: if fewer are left, so many of the smallest counts.
    """
    keep = (visits < patience).nonzero().squeeze(1)
    if len(keep) < least:
        keep = visits.argsort(stable=True)[:least].sort().values
    return Selection(keep, torch.ones(len(visits)))
