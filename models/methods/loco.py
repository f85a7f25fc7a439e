"""LoCo: self-supervised blocks that overlap, so that a gradient reaches one block further down.

Y. Xiong, M. Ren, R. Urtasun, "LoCo: Local Contrastive Representation Learning", NeurIPS 2020.
Unit k is blocks k and k + 1: every block but the first and the last learns as the upper half of one unit and as
the lower half of the next, which lets neighbouring losses negotiate.

    unit 1:   block 1 ──► block 2 ──► head, L₁
    unit 2:               block 2 ──► block 3 ──► head, L₂
    unit 3:                           block 3 ──► block 4 ──► head, L₃

The paper's deeper decoders (further residual blocks in a head) are not built.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from losses.errors import UsageError
from models.method import LabelledImages
from models.methods.blockwise_ssl import BlockwiseSSL
from models.plan import StepPlan


class LoCo(BlockwiseSSL):
    """K overlapping blocks, K − 1 losses: on the outputs of blocks 2 … K, each reaching two blocks down.

    A block runs once per batch: what its two units do to it is told apart by the border at which its input is
    cut off. Two blocks' graphs are alive at a time.

    Args:
        num_blocks: K, at least 2.
        options: all else, as in :class:`BlockwiseSSL`.

    Raises:
        UsageError: one block, sequential training, frozen blocks, or a difficulty that changes the views.
    """

    def __init__(self, num_blocks: int = 4, **options: Any) -> None:
        super().__init__(num_blocks=num_blocks, **options)
        if num_blocks < 2:
            raise UsageError("LoCo's units are pairs of blocks: num_blocks must be at least 2.")
        if self.schedule.epochs_per_block is not None or self.schedule.frozen or self.difficulty.views:
            raise UsageError(
                "LoCo's blocks learn together, on the same views: leave epochs_per_block, frozen_blocks and views out."
            )
        self.heads[0] = nn.Sequential()  # the first block has no loss of its own

    @override
    def training_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """One batch: the loss on block k + 1 goes through it and on through block k, which is updated then."""
        (strength, pair), *_ = self.step_input(batch)[1].items()
        outputs = self._features(0, pair)
        for k in range(1, self.num_blocks):
            border = outputs[0].detach().requires_grad_(), outputs[1].detach().requires_grad_()
            above = self._features(k, border)
            loss = self.local_loss(k, {strength: above}, batch)
            last = k == self.num_blocks - 1
            self.backward_block(k, loss, retain_graph=not last)  # block k's graph serves the unit above, too
            del loss  # the head's graph goes now
            torch.autograd.backward(outputs, [entry.grad for entry in border])  # on into the block below
            self.step_block(k - 1)
            outputs = above
        self.step_block(self.num_blocks - 1)

    @property
    @override
    def why_one_place(self) -> str:
        return "learn in pairs"

    @override
    def plan(self) -> StepPlan:
        """Two passes back where two units overlap; the two blocks of each unit are held together."""
        backward = [1, *[2] * (self.num_blocks - 2), 1]
        units = [range(k, k + 2) for k in range(self.num_blocks - 1)]
        return replace(super().plan(), backward_passes=backward, held_together=units)
