"""InfoBatch: each epoch leaves out some of the images with small losses, and weighs the others of them up."""

import torch
from torch import Tensor
from typing_extensions import override

from datamodules.batch import Batch, Selection
from experiments.callbacks.data_filter import DataFilter
from experiments.callbacks.fit_trainer import FitTrainer
from losses.errors import UsageError
from models.classification import LocalClassification
from ranges import Share


class InfoBatch(DataFilter):
    """Trains each epoch without a random half of the images whose last loss was below the mean.

    Z. Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (ICLR 2024). Nothing is
    dropped in the first epoch, and in the last ones, to even out what chance did. An image's score is its last loss,
    averaged over the blocks that learn; blocks that learn one after the other begin anew.

    Args:
        ratio: r, the share of images below the mean that is dropped.
        until: share δ of the epochs (of each block, if they learn one after the other) with dropping.

    Raises:
        UsageError: shares that are none, or so few epochs that all of them see all images.
    """

    def __init__(self, ratio: Share = 0.5, until: Share = 0.875) -> None:
        super().__init__()
        if not 0 < ratio < 1 or not 0 < until <= 1:
            raise UsageError(
                f"InfoBatch drops a share below 1 until a share of the epochs, both above 0, not {ratio}, {until}."
            )
        self.ratio, self.until = ratio, until

    @override
    def setup(self, trainer: FitTrainer, pl_module: LocalClassification, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        epochs, least = min(pl_module.schedule.lengths or [trainer.max_epochs]), max(2, int(1 / self.until) + 1)
        if stage == "fit" and not trainer.fast_dev_run and epochs < least:
            whose = "epochs_per_block" if pl_module.schedule.lengths else "trainer.max_epochs"
            raise UsageError(
                f"InfoBatch needs {whose} of at least {least}, not {epochs}: the first epoch sees all images, and so "
                f"do those behind the share until = {self.until:g} of them."
            )

    @override
    def scores(self, model: LocalClassification, batch: Batch, earlier: Tensor) -> Tensor:
        return torch.stack([model.checked_losses(z, batch.labels) for z in model.logits_of.values()]).mean(0).float()

    @override
    def choose(self, scores: Tensor, done: int, epochs: int, generator: torch.Generator) -> Selection | None:
        """Drop a random share of the images whose loss is below the mean; weigh what is kept of them up.

        The weighted losses of an epoch then sum, in expectation, to those of all images, and so do the gradients.
        """
        if not 0 < done < self.until * epochs:
            return None
        below = (scores < scores.mean()).nonzero().squeeze(1)
        dropped = below[torch.randperm(len(below), generator=generator)[: int(self.ratio * len(below))]]
        keep, weights = torch.ones(len(scores), dtype=torch.bool), torch.ones(len(scores))
        keep[dropped] = False
        if len(dropped):
            weights[below] = len(below) / (len(below) - len(dropped))  # not 1 / (1 − r): exact after rounding too
        return Selection(keep.nonzero().squeeze(1), weights)
