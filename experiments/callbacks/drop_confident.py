"""Each epoch leaves out the images that the network is sure of."""

import torch
from torch import Tensor
from typing_extensions import override

from datamodules.batch import Batch, Selection
from experiments.callbacks.data_filter import DataFilter
from losses import probabilities
from losses.errors import UsageError
from models.classification import LocalClassification
from ranges import PositiveInt, Share


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

    def __init__(
        self,
        threshold: Share = 0.99,
        patience: PositiveInt = 3,
        rescore_every: PositiveInt = 5,
        least: PositiveInt = 256,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1 or min(patience, rescore_every, least) < 1:
            raise UsageError(
                "DropConfident needs a threshold between 0 and 1, and patience, rescore_every and least of at least 1, "
                f"not {threshold}, {patience}, {rescore_every}, {least}."
            )
        self.threshold, self.patience, self.rescore_every, self.least = threshold, patience, rescore_every, least

    @override
    def scores(self, model: LocalClassification, batch: Batch, earlier: Tensor) -> Tensor:
        """Visits in turn, ``(B,)``, at which all learning blocks were sure."""
        true = [probabilities(z).gather(1, batch.labels[:, None]) for z in model.logits_of.values()]
        return (earlier + 1) * (torch.cat(true, dim=1).amin(1) > self.threshold)

    @override
    def choose(self, scores: Tensor, done: int, epochs: int, generator: torch.Generator) -> Selection | None:
        """Those that are not sure yet, or all."""
        if done and done % self.rescore_every == 0:
            return None
        keep = (scores < self.patience).nonzero().squeeze(1)
        if len(keep) < self.least:
            keep = scores.argsort(stable=True)[: self.least].sort().values
        return Selection(keep, torch.ones(len(scores)))
