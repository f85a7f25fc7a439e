"""Asynchronous decoupled greedy learning: blocks at speeds of their own, with a replay buffer in front of each.

E. Belilovsky, M. Eickenberg, E. Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020, Algorithm 2. Whose turn it is
is drawn by lot, as often as a block is fast; no block waits for another:

    images ──► block 1 ──► [buffer 1] ──► block 2 ──► [buffer 2] ──► … ──► block K
                 by lot                     by lot                           by lot
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from losses.errors import UsageError
from models.method import LabelledImages
from models.methods.decoupled_greedy import DecoupledGreedy
from models.plan import StepPlan
from ranges import PositiveFloat, PositiveInt


@dataclass
class _Kept:
    """Features that a block has made of a batch, and how often the next one has learned from them."""

    features: Tensor
    batch: LabelledImages
    uses: int = 0


class ReplayBuffer:
    """The newest outputs of a block; a full one forgets the oldest.

    Args:
        size: M, batches.
    """

    def __init__(self, size: int) -> None:
        self._kept: deque[_Kept] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def put(self, features: Tensor, batch: LabelledImages) -> None:
        """Keep what a block has made of a batch."""
        self._kept.append(_Kept(features, batch))

    def take(self) -> tuple[Tensor, LabelledImages]:
        """The features that have been learned from least often, of these the newest; they stay."""
        chosen = min(reversed(self._kept), key=lambda kept: kept.uses)
        chosen.uses += 1
        return chosen.features, chosen.batch


class AsynchronousGreedy(DecoupledGreedy):
    """DGL whose blocks wait for nobody, simulated in one process.

    A step begins with the first block, which learns from the batch that is loaded. Then lots are drawn until the first
    block's comes again: each has the block drawn learn once, from what the buffer in front of it holds, and put its
    output into the next buffer. A fast block learns from the same features again, a slow one never sees some of them.
    Buffers are empty when an epoch begins. The lots are torch's random numbers, so a run can be repeated and resumed.

    Args:
        speeds: of the blocks, in any unit, and of a final head, if there is one; by default all are as fast.
        buffer: M, how many batches each buffer holds.
        options: all else, as in :class:`DecoupledGreedy`.

    Raises:
        UsageError: another number of speeds than blocks, blocks that learn one after the other or not at all, or steps
            of several batches.
    """

    blocks_share_batch = False

    def __init__(self, speeds: list[PositiveFloat] | None = None, buffer: PositiveInt = 10, **options: Any) -> None:
        super().__init__(**options)
        parts = self.schedule.parts
        if speeds is not None and len(speeds) != parts:
            raise UsageError(f"speeds has one number for each of {parts} blocks (a final head is one), not {speeds}.")
        if self.schedule.lengths or self.schedule.frozen or self.accumulate > 1:
            raise UsageError(
                "Asynchronous blocks all learn, one batch at a time: leave epochs_per_block, frozen_blocks and "
                "accumulate out."
            )
        self._speeds = torch.tensor(speeds or [1] * parts, dtype=torch.float)
        self._replay = [ReplayBuffer(buffer) for _ in self._speeds]

    @override
    def on_train_epoch_start(self) -> None:
        """Begin with empty buffers."""
        for buffer in self._replay:
            buffer.clear()

    @override
    def training_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """The first block learns from the batch, then others as lots are drawn."""
        self._learn(0, batch.images, batch)
        while k := int(torch.multinomial(self._speeds, 1)):
            if self._replay[k - 1]:  # else the block has nothing to learn from yet
                self._learn(k, *self._replay[k - 1].take())
        self.count_step()

    def _learn(self, k: int, x: Tensor, batch: LabelledImages) -> None:
        features = self.block_output(k, x) if k < self.num_blocks else x  # a final head reads what was handed on
        self.update_block(k, self.local_loss(k, features, batch))
        self._replay[k].put(self.hand_on(k, features), batch)

    @override
    def step_block(self, k: int) -> None:
        """Step block k's optimizer; the step is counted when the lot falls on the first block."""
        self.step_optimizer(k)

    @property
    @override
    def why_one_place(self) -> str:
        return "draw lots"

    @property
    @override
    def why_one_process(self) -> str:
        return "draws lots, and each process others"

    @override
    def plan(self) -> StepPlan:
        """Each part goes forward and back as often as it is fast, per batch of the first."""
        rates = (self._speeds / self._speeds[0]).tolist()
        return replace(super().plan(), forward_passes=rates, backward_passes=rates)
