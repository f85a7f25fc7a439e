"""Deep supervision: the same heads and losses as decoupled greedy learning, and nothing detached.

C.-Y. Lee, S. Xie, P. Gallagher, Z. Zhang, Z. Tu, "Deeply-Supervised Nets", AISTATS 2015. The control that tells what
the heads do from what the isolation of the blocks does: all local losses go back through the whole network.
"""

from dataclasses import replace
from typing import Any

import torch
from typing_extensions import override

from losses.errors import UsageError
from models.method import LabelledImages
from models.methods.decoupled_greedy import DecoupledGreedy
from models.plan import StepPlan


class DeepSupervision(DecoupledGreedy):
    """DGL without its stop-gradients: backpropagation of the sum of the blocks' losses.

    Args:
        options: those of :class:`DecoupledGreedy`, but for a final head, sequential training and frozen blocks.

    Raises:
        UsageError: one of those.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.schedule.parts > self.num_blocks or self.schedule.lengths or self.schedule.frozen:
            raise UsageError(
                "In deep supervision all losses go back through one network: leave final_head, epochs_per_block and "
                "frozen_blocks out."
            )

    @override
    def training_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """One batch: every head goes back to its features, then all that arrived there goes back through the blocks."""
        outputs, arrived = [], []
        _, x = self.step_input(batch)
        for k in range(self.num_blocks):
            x = self.block_output(k, x)
            features = x.detach().requires_grad_()
            self.backward_block(k, self.local_loss(k, features, batch))  # the head's graph is freed here
            outputs.append(x)
            arrived.append(features.grad)
        torch.autograd.backward(outputs, arrived)
        for k in range(self.num_blocks):
            self.step_block(k)

    @property
    @override
    def why_one_place(self) -> str:
        return "are one network"

    @override
    def plan(self) -> StepPlan:
        """All blocks are held together."""
        return replace(super().plan(), held_together=[range(self.num_blocks)])
