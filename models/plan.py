"""What a method tells others, as values: who learns when, and what one training step does."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import nn

from losses.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """Which parts of a network learn in which epoch: the blocks in their order, and last a final head, if there is one.

    Args:
        parts: how many there are.
        epochs_per_block: epochs of each, one part after the other: a number for all, or a list of one for each;
            None: all learn in every epoch.
        frozen: how many of the first parts never learn, while the others do so together.
        own_rates: each part has a learning-rate schedule of its own, made for its own epochs.

    Raises:
        UsageError: fewer than one epoch, a list of more or fewer numbers than parts, no part that learns, or frozen
            parts before others that learn one after the other.
    """

    parts: int
    epochs_per_block: int | Sequence[int] | None = None
    frozen: int = 0
    own_rates: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.frozen < self.parts:
            raise UsageError(f"frozen_blocks must leave one of {self.parts} to learn: 0 to {self.parts - 1}.")
        if self.frozen and self.lengths:
            raise UsageError("The blocks behind frozen_blocks learn together: leave epochs_per_block out.")
        if min(self.lengths, default=1) < 1:
            raise UsageError(f"epochs_per_block must be at least 1, not {self.epochs_per_block}.")
        if len(self.lengths) not in (0, self.parts):
            raise UsageError(
                f"epochs_per_block lists the epochs of {len(self.lengths)} blocks, {self.epochs_per_block}, but "
                f"{self.parts} learn one after the other (a final head counts as one): give one number for each, or a "
                "single one for all."
            )

    @cached_property
    def lengths(self) -> list[int]:
        """Epochs of each part, if one learns after the other; empty if all learn in every epoch."""
        if isinstance(self.epochs_per_block, int):
            return [self.epochs_per_block] * self.parts
        return [*(self.epochs_per_block or ())]

    @property
    def epochs(self) -> int | None:
        """Number of epochs that the training takes, no more and no fewer; None if any number does."""
        return sum(self.lengths) or None

    def first_epoch(self, part: int) -> int:
        """Epoch (counted from 0) in which a part (counted from 0) begins to learn."""
        return sum(self.lengths[:part])

    def learners(self, epoch: int) -> range:
        """Parts (counted from 0) that learn in an epoch (counted from 0); those before them are frozen."""
        if not self.lengths:
            return range(self.frozen, self.parts)
        k = min(bisect(list(accumulate(self.lengths)), epoch), self.parts - 1)
        return range(k, k + 1)

    def turn(self, epoch: int, epochs: int = 1) -> tuple[int, int]:
        """Place of an epoch (counted from 0) among those of the part that learns in it, and how many these are.

        Args:
            epoch: which, counted from 0.
            epochs: of the whole training; if all parts learn together, these are those of each.
        """
        if not self.lengths:
            return epoch, epochs
        k = self.learners(epoch).start
        return epoch - self.first_epoch(k), self.lengths[k]

    def stride(self, epoch: int) -> int:
        """Steps of a part's learning-rate schedule in an epoch (counted from 0), for one of the longest part.

        A part of fewer epochs than others goes through the same schedule in longer strides, to its end; through one of
        its own step by step.
        """
        if self.own_rates:
            return 1
        place, epochs = self.turn(epoch)
        longest = max(self.lengths, default=epochs)
        return (place + 1) * longest // epochs - place * longest // epochs

    def require_fit(self, epochs: int | None, interval: str | None) -> None:
        """See that a training lets every part learn for its epochs.

        Args:
            epochs: of the training; None, if it is only tried out.
            interval: what a learning-rate schedule counts, ``epoch`` or ``step``; None if there is none.

        Raises:
            UsageError: more or fewer epochs than all parts take one by one, or a schedule that counts steps of parts
                with different numbers of epochs.
        """
        if interval == "step" and not self.own_rates and len(set(self.lengths)) > 1:
            raise UsageError(
                f"Blocks of different epochs_per_block, {self.lengths}, go through one schedule in strides of epochs: "
                "set --model.scheduler_interval epoch."
            )
        if None in (epochs, self.epochs) or epochs == self.epochs:
            return
        each, whose = (" each", "that") if isinstance(self.epochs_per_block, int) else ("", "the longest")
        anew = f" The schedule begins anew with every block: T_max counts {whose} block's {interval}s."
        raise UsageError(
            f"{self.parts} blocks of {self.epochs_per_block} epochs{each} take {self.epochs} epochs: set "
            f"trainer.max_epochs to that, not {epochs}, or change epochs_per_block.{anew if interval else ''}"
        )

    @property
    def forward_passes(self) -> list[float]:
        """How often a step goes forward through each part, on average over epochs of as many steps each."""
        return [sum(self.lengths[k:]) / sum(self.lengths) if self.lengths else 1.0 for k in range(self.parts)]

    @property
    def backward_passes(self) -> list[float]:
        """How often its loss goes back through each part, likewise."""
        if not self.lengths:
            return [float(k >= self.frozen) for k in range(self.parts)]
        return [length / sum(self.lengths) for length in self.lengths]


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
