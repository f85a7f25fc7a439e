"""Blocks that learn in overlapping pairs, so that a gradient crosses one boundary.

    pair 1:   block 1 ──► block 2 ──► loss on its output
    pair 2:               block 2 ──► block 3 ──► loss on its output
    pair 3:                           block 3 ──► block 4 ──► loss on its output

A block runs once per batch: what its two pairs do to it is told apart by the border at which its input is cut off. Two
neighbouring blocks' graphs are alive at a time, and each goes back twice.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from losses.errors import UsageError
from models.local_learning import LocalLearning
from models.method import LabelledImages
from models.plan import StepPlan


class OverlappingBlocks(LocalLearning):
    """The loop of overlapping pairs; what goes from block to block is a tuple of tensors, one for each view.

    The losses on the output of block k + 1 are of two kinds: the pair's, whose gradient goes on through the block into
    the one below, and the block's alone, which ends at the block's own input.
    """

    @override
    def training_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """One batch: the losses on block k + 1, then back through it and on through block k, which is updated then."""
        below, pending = self.through(0, self.entering(batch)), None
        for k in range(1, self.num_blocks):
            border = _cut_off(below)
            above = self.through(k, border)
            alone, pair = _cut_off(above), _cut_off(above)
            self.backward_block(k, self.overlapping_loss(k, alone, pair, batch))
            again = k + 1 < self.num_blocks or alone[0].grad is not None  # block k + 1 goes back once more
            torch.autograd.backward(above, _gradients(pair), retain_graph=again)
            torch.autograd.backward(below, _gradients(border, pending))
            self.step_block(k - 1)
            below, pending = above, alone
        if pending is not None and pending[0].grad is not None:
            torch.autograd.backward(below, _gradients(pending))
        self.step_block(self.num_blocks - 1)

    def entering(self, batch: LabelledImages) -> Sequence[Tensor]:
        """What the first block reads."""
        return (batch.images,)

    def through(self, k: int, x: Sequence[Tensor]) -> Sequence[Tensor]:
        """What block k (counted from 0) makes of what the one below hands on."""
        return [self.block_output(k, one) for one in x]

    @abstractmethod
    def overlapping_loss(
        self, k: int, alone: Sequence[Tensor], pair: Sequence[Tensor], batch: LabelledImages
    ) -> Tensor:
        """Sum of the losses on the output of block k (counted from 0; not the first).

        Args:
            k: the block.
            alone: its output; what the loss sends back to this stays in the block.
            pair: its output again; what the loss sends back to this goes on into the block below.
            batch: the images and labels.
        """

    def require_pairs(self, name: str) -> None:
        """See that there are pairs, which learn together.

        Raises:
            UsageError: one block, sequential training, or frozen blocks.
        """
        if self.num_blocks < 2:
            raise UsageError(f"{name} learns in pairs of blocks: num_blocks must be at least 2.")
        if self.schedule.epochs_per_block is not None or self.schedule.frozen:
            raise UsageError(f"{name}'s blocks learn together: leave epochs_per_block and frozen_blocks out.")

    @property
    @override
    def why_one_place(self) -> str:
        return "learn in pairs"

    @override
    def plan(self) -> StepPlan:
        """Two passes back where two pairs overlap; the two blocks of each pair are held together."""
        backward = [1, *[2] * (self.num_blocks - 2), self.passes_of_last_block]
        pairs = [range(k, k + 2) for k in range(self.num_blocks - 1)]
        return replace(super().plan(), backward_passes=backward, held_together=pairs)

    @property
    def passes_of_last_block(self) -> int:
        """How often a step goes back through the last block: twice, if it has a loss alone."""
        return 1


def _cut_off(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [output.detach().requires_grad_() for output in outputs]


def _gradients(tensors: Sequence[Tensor], others: Sequence[Any] | None = None) -> list[Tensor | None]:
    """Gradients of tensors, plus those of other ones of the same shapes that have any."""
    own = [tensor.grad for tensor in tensors]
    if others is None or others[0].grad is None:
        return own
    return [g + other.grad for g, other in zip(own, others, strict=True)]
