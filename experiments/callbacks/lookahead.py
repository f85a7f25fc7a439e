"""Slow weights that follow the trained ones."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from typing_extensions import override

from losses.errors import UsageError
from models.local_learning import LocalLearning
from ranges import PositiveInt, Share


class Lookahead(L.Callback):
    """Every few steps slow ← slow + (1 − a) (fast − slow), fast ← slow, for weights and running statistics alike.

    a = decay^every · (t / T)³ grows with the step t of T: at first the slow weights are the fast ones. Training ends
    with the slow weights. M. Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, with the
    rule of K. Jordan, arXiv 2404.00498, 2024. All blocks share the clock, so that K of them do as one network does.

    Args:
        every: steps from one update to the next.
        decay: share of the slow weights that a step keeps, at the end of the training.

    Raises:
        UsageError: the training has no end, or it is none of blocks, or they learn one after the other, or in
            processes of their own.
    """

    changes_training = True

    def __init__(self, every: PositiveInt = 5, decay: Share = 0.95) -> None:
        self.every, self.decay = every, decay
        self._slow: dict[str, Tensor] = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the weights that training begins with, unless a checkpoint said other ones."""
        if not isinstance(pl_module, LocalLearning):
            raise UsageError(f"Lookahead follows the weights of blocks, and {type(pl_module).__name__} has none.")
        if pl_module.schedule.lengths:
            raise UsageError("Lookahead has one clock for blocks that learn together: leave epochs_per_block out.")
        if len(pl_module.here) < pl_module.schedule.parts:
            raise UsageError("Lookahead keeps the slow weights of all blocks in one process: leave BlockParallel out.")
        if trainer.estimated_stepping_batches == float("inf"):
            raise UsageError("Lookahead grows until the end of the training: set --trainer.max_epochs or max_steps.")
        if not self._slow:
            self._slow = {name: value.clone() for name, value in _state(pl_module).items()}
        self._slow = {name: value.to(pl_module.device) for name, value in self._slow.items()}

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LocalLearning, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after every few steps; after the last one take the slow weights."""
        step, steps = trainer.global_step, int(trainer.estimated_stepping_batches)
        due = step % self.every == 0
        if not due and step < steps:
            return
        kept = self.decay**self.every * (step / steps) ** 3 if due else 1.0
        for name, fast in _state(pl_module).items():
            fast.copy_(self._slow[name].lerp_(fast, 1 - kept))

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._slow

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._slow = dict(state_dict)


def _state(model: LocalLearning) -> Mapping[str, Tensor]:
    """All numbers of blocks and heads that training changes, by name."""
    parts = {"blocks": model.blocks, "heads": model.heads}
    named = {f"{what}.{name}": value for what, part in parts.items() for name, value in part.state_dict().items()}
    return {name: value for name, value in named.items() if value.is_floating_point()}
