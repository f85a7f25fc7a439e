"""Layer-wise and partition-wise training: one block after the other, each with a head that is then thrown away.

    images ──► block 1 … k − 1, frozen ──► block k ──► head k, loss k        epochs (k − 1)·E … k·E

A. Øland, "Efficient Deep Learning" (PhD thesis, CMU-CS-24-147, 2024), whose text was not available: this is
our reading, with the heads of E. Belilovsky, M. Eickenberg, E. Oyallon, "Greedy Layerwise Learning Can Scale
to ImageNet" (ICML 2019). Blocks that learn all at once are :class:`models.DecoupledGreedy`.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from losses.errors import NetworkError, UsageError
from models.method import LabelledImages
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut
from models.networks.layers.overparameterized import collapse, overparameterize
from models.networks.sequential import build_chain
from models.parts.feature_store import FeatureStore, StoredInputs
from models.parts.regularization import Regularization
from models.plan import StepPlan
from ranges import PositiveInt


class Layerwise(DecoupledGreedy):
    """Sequential training of blocks of p units; p = 1 is layer-wise, p = all units is backpropagation.

    While block k learns, the blocks before it are frozen and in evaluation mode, those behind it idle;
    ``val/top1`` is the accuracy of head k, so its curve shows what each further block adds. Every
    block has an optimizer and a schedule of its own, which begin with it; a finished block's head and
    optimizer state are freed.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        units_per_block: p, 1 by default; a last block may be smaller.
        num_blocks: K, instead of p: the network is then cut by ``cut``.
        cut: where to cut into K blocks.
        epochs_per_block: E, or a list of each block's number, such as ``[8, 4, 2]``; ``trainer.max_epochs`` is K·E, or
            their sum.
        keep_heads: keep the heads of finished blocks: all are evaluated, and their ensemble.
        regularization: of the learning block.
        store: keep the features of the frozen blocks instead of computing them in every epoch.
        options: head, last_head, optimizer and the other arguments of :class:`DecoupledGreedy`.

    Raises:
        NetworkError: p is none or more than the network has units, or p and K are both given.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        units_per_block: PositiveInt | None = None,
        num_blocks: int | None = None,
        cut: Cut = Cut(),
        epochs_per_block: PositiveInt | list[PositiveInt] = 10,
        keep_heads: bool = False,
        regularization: Regularization = Regularization(),
        store: FeatureStore | None = None,
        **options: Any,
    ) -> None:
        if num_blocks is not None and units_per_block is not None:
            raise NetworkError(
                f"Blocks are cut by units_per_block, here {units_per_block}, or by num_blocks, here {num_blocks}, not "
                "by both: set one to null, as with --model.units_per_block null."
            )
        if num_blocks is None:
            with torch.device("meta"):  # only to see the names: no random numbers are drawn for it
                names = build_chain(network, image_shape, num_classes).unit_names
            num_blocks, cut = _every(1 if units_per_block is None else units_per_block, names)
        super().__init__(
            network,
            image_shape,
            num_classes,
            num_blocks,
            cut,
            final_head=None,
            epochs_per_block=epochs_per_block,
            **options,
        )
        self.keep_heads, self.regularization = keep_heads, regularization
        self.disturb = regularization.disturbance()
        for block in self.blocks:
            overparameterize(block, regularization.overparameterize)
        self._all_heads = [copy.deepcopy(head).to("meta") for head in self.heads]  # for cost: dropped ones too
        self._inputs = StoredInputs(store, self.schedule.lengths) if store else None
        self._finished = 0

    # -- the learning block -------------------------------------------------------------------------

    @override
    def step_input(self, batch: LabelledImages) -> tuple[int, Tensor | None]:
        """The first block whose input is not stored, and that input.

        None where the block that learns is elsewhere: it reads what is stored there.
        """
        if self._inputs is None:
            return super().step_input(batch)
        if self.learners.start not in self.here:
            return self.learners.stop, None
        epoch, _ = self.schedule.turn(self.current_epoch)
        return self._inputs.blocks, self._inputs.read(epoch, batch.images, batch.indices)

    @override
    def block_output(self, k: int, x: Tensor) -> Tensor:
        """Features of block k; the input of the block that learns is disturbed."""
        return super().block_output(k, self.disturb(x) if k in self.learners else x)

    @override
    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """One optimizer and schedule per block, with raised weight decay, of which there must be some."""
        optimizers, schedulers = super().configure_optimizers()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        factor = self.regularization.weight_decay
        if factor != 1 and not any(group.get("weight_decay") for group in groups):
            raise UsageError(
                f"regularization.weight_decay {factor:g} is a factor on the optimizer's weight decay, which is 0: set "
                "--model.optimizer.weight_decay, as 1e-4."
            )
        for group in groups:
            group["weight_decay"] = group.get("weight_decay", 0) * factor
        return optimizers, schedulers

    # -- from one block to the next -----------------------------------------------------------------

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self._inputs:
            self._inputs.store.require_folder()  # not only when the second block begins

    @override
    def on_train_batch_start(self, batch: LabelledImages, batch_idx: int) -> None:
        """When a block begins: store what the frozen blocks hand on, in the process where it learns."""
        super().on_train_batch_start(batch, batch_idx)
        learner = self.learners.start
        self._finish_before(learner)  # if a checkpoint was written within the end of an epoch
        if self._inputs and learner not in self.here:
            self._inputs.close()
        elif self._inputs and self._inputs.blocks < learner:
            data = self.trainer.datamodule  # type: ignore[attr-defined]  # a connector of Lightning's sets it
            if data is None:
                raise UsageError("A feature store needs the images in order: give the Trainer a data module.")
            self._inputs.advance([*self.blocks[:learner]], data, self.device)

    @override
    def on_train_epoch_end(self) -> None:
        """Step the schedule; finish a block that has had its epochs: checkpoints are written after this."""
        super().on_train_epoch_end()
        epoch, epochs = self.schedule.turn(self.current_epoch)
        if epoch + 1 == epochs:
            self._finish_before(self.learners.stop)
        self._drop_heads_before(self.learned - 1)

    def _finish_before(self, stop: int) -> None:
        """Free what only the training of the first ``stop`` blocks needed; what they predict is still asked for."""
        for k in range(self._finished, stop):
            collapse(self.blocks[k])
            self._forget_optimizer(k)
        self._finished = max(self._finished, stop)

    def _drop_heads_before(self, stop: int) -> None:
        """Free the heads of the first ``stop`` blocks: the one behind them has had an epoch and predicts instead."""
        for k in range(0 if self.keep_heads else stop):
            if not isinstance(self.heads[k], nn.Identity):
                self.heads[k] = nn.Identity()
                self._forget_optimizer(k)

    def _forget_optimizer(self, k: int) -> None:
        """Have block k's optimizer hold what is left of the block, without state."""
        optimizer = self.trainer.optimizers[k]
        optimizer.state.clear()
        optimizer.param_groups = self.part_optimizer(k).param_groups

    @override
    def take_shape_of(self, checkpoint: Mapping[str, Any]) -> None:
        """Become the model that a checkpoint was saved from: its finished heads and factors are gone."""
        super().take_shape_of(checkpoint)
        weights, dropped = checkpoint["state_dict"], 0
        for k, block in enumerate(self.blocks):
            if not any(name.startswith(f"heads.{k}.") for name in weights):
                self.heads[k] = nn.Identity()
                dropped += 1
            if not any(name.startswith(f"blocks.{k}.") and ".parametrizations." in name for name in weights):
                collapse(block)
        # Earlier checkpoints: a block's head was dropped as soon as it had learned, and only the next one's is there.
        self.learned = max(self.learned, dropped + 1)

    @override
    def on_fit_end(self) -> None:
        """Free the store."""
        if self._inputs:
            self._inputs.close()

    # -- evaluation ---------------------------------------------------------------------------------

    @override
    def block_prediction(self, k: int, features: Tensor) -> Tensor | None:
        """Of the last block that has learned, and of those before it if their heads are kept."""
        return super().block_prediction(k, features) if self.keep_heads or k == self.learned - 1 else None

    @override
    def plan(self) -> StepPlan:
        """All heads, also those that are dropped by now; with a store frozen blocks are not run again."""
        plan = replace(super().plan(), heads=self._all_heads)
        return replace(plan, forward_passes=plan.backward_passes) if self._inputs else plan


def _every(units: int, names: list[str]) -> tuple[int, Cut]:
    """Number of blocks of that many units, and the cut that makes them."""
    if not 1 <= units <= len(names):
        raise NetworkError(
            f"A block of {units} units cannot be made of a network of {len(names)} ({names[0]} … {names[-1]}). Choose "
            f"units_per_block between 1, layer-wise training, and {len(names)}, backpropagation."
        )
    ends = names[units - 1 : -1 : units]
    return len(ends) + 1, Cut(after=ends)
