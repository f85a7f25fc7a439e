"""Leaving out, for an epoch, training images that a network already gets right: InfoBatch."""

import statistics
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from datamodules import Batch, Selection
from models import UnsupportedError
from models.classification import LocalClassification


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


class InfoBatch(L.Callback):
    """Trains each epoch without a random half of the images whose last loss was below the mean.

    Z. Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR 2024). Nothing is
    dropped in the first epoch, and in the last ones, to even out what chance did. An image's score is its last loss,
    averaged over the blocks that learn; blocks that learn one after the other begin anew. Logged: ``train/dropped``,
    the share of the images that the epoch left out, and ``train/saved``, that share over all epochs so far.

    Args:
        ratio: r, the share of images below the mean that is dropped.
        until: share δ of the epochs (of each block, if they learn one after the other) with dropping.

    Raises:
        UnsupportedError: shares that are none, or a method whose samples have no losses of their own.
    """

    def __init__(self, ratio: float = 0.5, until: float = 0.875) -> None:
        if not 0 <= ratio < 1 or not 0 <= until <= 1:
            raise UnsupportedError(
                f"InfoBatch drops a share below 1 until a share of the epochs, not {ratio}, {until}."
            )
        self.ratio, self.until = ratio, until
        self._losses: Tensor | None = None
        self._visits = 0  # of images, in this epoch
        self._dropped: list[float] = []  # share, of every epoch so far

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See that samples have losses; epochs will have different numbers of batches."""
        if stage == "fit":
            if not isinstance(pl_module, LocalClassification):
                raise UnsupportedError("InfoBatch judges images by their loss with a label: use a method with labels.")
            if trainer.world_size > 1:
                raise UnsupportedError("InfoBatch knows the losses of its own process only: use --trainer.devices 1.")
            trainer.datamodule.reload_every_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LocalClassification, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the losses.

        Raises:
            UnsupportedError: blocks that learn from something else than a loss per image.
        """
        if set(pl_module.logits_of) != set(pl_module.learners):
            raise UnsupportedError(
                f"InfoBatch weighs losses of images; {type(pl_module).__name__} blocks do not learn from these alone."
            )
        if self._losses is None:  # all equal: none is below the mean
            self._losses = torch.zeros(len(trainer.datamodule.training_images), device=batch.labels.device)
        losses = [pl_module.sample_losses(z, batch.labels) for z in pl_module.logits_of.values()]
        self._losses[batch.indices] = torch.stack(losses).mean(0).float()
        self._visits += len(batch.labels)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: LocalClassification) -> None:
        """Choose the images of the next epoch."""
        data, epochs, done = trainer.datamodule, trainer.max_epochs, trainer.current_epoch + 1
        if per_block := pl_module.epochs_per_block:
            epochs, done = per_block, done % per_block
        self._dropped.append(1 - self._visits / len(self._losses))
        self._visits = 0
        pl_module.log_dict({"train/dropped": self._dropped[-1], "train/saved": statistics.mean(self._dropped)})
        if 0 < done < self.until * epochs:
            generator = torch.Generator().manual_seed(trainer.global_step + data.seed)
            data.select(infobatch(self._losses.cpu(), self.ratio, generator))
        else:
            data.select(None)

    def state_dict(self) -> dict[str, Any]:
        """Losses and counts."""
        return {"losses": self._losses, "visits": self._visits, "dropped": self._dropped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's."""
        self._losses, self._visits, self._dropped = state_dict["losses"], state_dict["visits"], state_dict["dropped"]
