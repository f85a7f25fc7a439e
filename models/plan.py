"""What a method tells others, as values: who learns when, and what one training step does."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from losses.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """Which parts of a network learn in which epoch: the blocks in their order, and last a final head, if there is one.

    Args:
        parts: how many there are.
        epochs_per_block: epochs of each, one part after the other; None: all learn in every epoch.

    Raises:
        UsageError: fewer than one epoch.
    """

    parts: int
    epochs_per_block: int | None = None

    def __post_init__(self) -> None:
        if self.epochs_per_block is not None and self.epochs_per_block < 1:
            raise UsageError(f"epochs_per_block must be at least 1, not {self.epochs_per_block}.")

    @property
    def epochs(self) -> int | None:
        """Number of epochs that the training takes, no more and no fewer; None if any number does."""
        return None if self.epochs_per_block is None else self.parts * self.epochs_per_block

    def learners(self, epoch: int) -> range:
        """Parts (counted from 0) that learn in an epoch (counted from 0); those before them are frozen."""
        if self.epochs_per_block is None:
            return range(self.parts)
        k = min(epoch // self.epochs_per_block, self.parts - 1)
        return range(k, k + 1)

    @property
    def forward_passes(self) -> list[float]:
        """How often a step goes forward through each part, on average over the training."""
        if self.epochs_per_block is None:
            return [1.0] * self.parts
        return [(self.parts - k) / self.parts for k in range(self.parts)]

    @property
    def backward_passes(self) -> list[float]:
        """How often its loss goes back through each part, likewise."""
        return [1.0 if self.epochs_per_block is None else 1 / self.parts] * self.parts


@dataclass(frozen=True)
class StepPlan:
    """One training step: what ``cost`` and ``bench`` count.

    Attributes:
        blocks: what runs as the blocks, in order.
        heads: their heads; one more is the final head, on what the last block hands on.
        forward_passes: how often a step goes forward through each part, on average over the training.
        backward_passes: how often its loss goes back through each part, likewise.
        held_together: blocks (counted from 0) whose activations are kept at one time, with the last one's head.
        views: how often an image goes through the network.
        threads: thin networks side by side that never see each other, each of which predicts alone; one is the whole.
    """

    blocks: Sequence[nn.Module]
    heads: Sequence[nn.Module]
    forward_passes: Sequence[float]
    backward_passes: Sequence[float]
    held_together: Sequence[range]
    views: int = 1
    threads: int = 1
