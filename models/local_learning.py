"""The loop: train a chain of blocks, each with a head, a loss and an optimizer of its own.

    images ──► block 1 ──detach──► block 2 ──detach──► … ──► block K ──► prediction
                 │ head, loss         │ head, loss                │ head, loss
                 └ optimizer 1        └ optimizer 2               └ optimizer K

A method is a subclass that says which heads the blocks have and what the loss of block k is.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from losses.errors import UsageError
from models.features import pooled
from models.method import LabelledImages, Method, require_supported_processes
from models.networks.chain import Chain, NetworkCallable
from models.networks.memory import recomputed
from models.parts.rehearsal import SchedulerCallable, rehearse
from models.plan import Schedule, StepPlan
from ranges import NonNegativeInt, PositiveFloat, PositiveInt


class TrainingError(UsageError):
    """Training has gone wrong: a loss that is no number, features that collapsed; the message names block and step."""


class LocalLearning(Method):
    """K blocks trained side by side, no gradient going from one to another.

    Args:
        network: what makes the network, uncut.
        chain: the network whose units the blocks are made of.
        num_classes: number of classes.
        blocks: the network, cut; block k + 1 reads what block k hands on.
        heads: one per block: turns the block's features into what its loss needs. One more is the final head: it has
            a loss and an optimizer of its own on what the last block hands on.
        optimizer: parameters → optimizer; called once per block.
        scheduler: optimizer → learning-rate schedule; called once per block.
        scheduler_interval: step the schedules after every ``epoch`` or every ``step``.
        clip: largest gradient norm of a block (with its head); larger gradients are scaled down.
        accumulate: batches that an optimizer's step is made of: their mean loss is learned from, that of fewer at the
            end of an epoch. Schedules that count steps count these; all else counts batches.
        epochs_per_block: train the blocks one after the other, each for that many epochs (a list: each for its own
            number), then freeze it; by default all learn on every batch. The scheduler is that of the block with most
            epochs: one with fewer goes through the same in longer strides.
        frozen_blocks: how many of the first blocks keep the weights that they begin with: random ones, or those of
            another run (:class:`experiments.callbacks.StartFrom`).
        compile: run each block and head through ``torch.compile``; training refuses it on a CPU, where it does not pay.
        recompute: BatchNorm, activations and pooling behind a convolution are computed again in the backward pass,
            piece by piece, instead of kept (:class:`models.networks.Recomputed`).

    Attributes:
        here: parts that learn in this process, in which each step begins with the first of them: all, unless a strategy
            spreads them.
        logs_this_step: whether this step's metrics go to the loggers; others are not computed.
        learned: number of parts that have learned: all, but while they do so one after the other those that have had
            an epoch. The others are neither evaluated nor probed.

    Raises:
        UsageError: fewer than one epoch per block, a list of other than one number for each, or all blocks frozen.
    """

    blocks: nn.ModuleList
    heads: nn.ModuleList
    losses_read_images: ClassVar[bool] = False
    """Whether the losses of all blocks read the images themselves."""
    charts: ClassVar[Sequence[str]] = ()
    """Metrics ``train/block<k>/<metric>`` of the method's own that TensorBoard draws in a chart each; * is any name."""
    blocks_share_batch: ClassVar[bool] = True
    """Whether all blocks learn from the batch of a step, each once."""

    def __init__(
        self,
        network: NetworkCallable,
        chain: Chain,
        num_classes: int,
        blocks: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9),
        scheduler: SchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        clip: PositiveFloat | None = None,
        accumulate: PositiveInt = 1,
        epochs_per_block: PositiveInt | list[PositiveInt] | None = None,
        frozen_blocks: NonNegativeInt = 0,
        compile: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make_network, self.network_name = network, chain.name
        self.image_shape, self.num_classes = chain.image_shape, num_classes
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)
        if recompute:
            recomputed.recompute(self.blocks)
            recomputed.recompute(self.heads)
        self.num_blocks, self.schedule = len(blocks), Schedule(len(heads), epochs_per_block, frozen_blocks)
        self.learned = self.schedule.parts
        self.here = range(self.schedule.parts)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.scheduler_interval, self.clip, self.accumulate = scheduler_interval, clip, accumulate
        self.to(memory_format=torch.channels_last)
        self.compiled = compile
        if compile:
            _compile([*self.blocks, *self.heads])
        self.logs_this_step = False
        self._batches_of_step, self._steps_now = 1, True
        self._losses: dict[int, Tensor] = {}
        self._records: dict[str, Tensor | float] = {}

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def training_step(self, batch: LabelledImages, batch_idx: int) -> Any:
        """One batch: every block computes its features and its loss, and is updated at once.

        Returns:
            What the blocks after those that are here go on from; None if all are here.
        """
        first, x = self.step_input(batch)
        for k in range(first, min(self.learners.stop, self.num_blocks, self.here.stop)):
            if k in self.learners:
                features = self.block_output(k, x)
                loss = self.local_loss(k, features, batch)  # the method
                self.update_block(k, loss)  # backward, clip, step: block k only; its graph is freed here
            else:  # frozen: trained before, or never
                with torch.no_grad():
                    features = self.block_output(k, x)
            x = self.hand_on(k, features)  # nothing else goes on
        if self.num_blocks in self.learners and self.num_blocks in self.here:  # a final head
            self.update_block(self.num_blocks, self.local_loss(self.num_blocks, x, batch))
        return x if self.here.stop < self.learners.stop else None

    def step_input(self, batch: LabelledImages) -> tuple[int, Any]:
        """Block (counted from 0) with which a step begins, and what it reads: the first, the images.

        Of a batch from which earlier blocks have learned elsewhere, the next block, and what has arrived for it.
        """
        return batch.arrived or (0, batch.images)

    def block_output(self, k: int, x: Any) -> Any:
        """Features that block k (counted from 0) makes of what was handed on to it."""
        return self.blocks[k](x)

    def local_loss(self, k: int, features: Any, batch: LabelledImages) -> Tensor:
        """Loss of block k (counted from 0) on its features; a scalar. A method implements this.

        With a final head also called for k = K, on what the last block hands on.
        """
        raise UsageError(f"{type(self).__name__} does not say what the loss of a block is: it needs a local_loss.")

    def hand_on(self, k: int, features: Any) -> Any:
        """What block k + 1 reads of block k's features: no gradient goes back."""
        return features.detach()

    @property
    def learners(self) -> range:
        """Blocks (from 0; the final head is K) that learn in this epoch: all but frozen ones, or one after another."""
        return self.schedule.learners(self.current_epoch)

    def update_block(self, k: int, loss: Tensor) -> None:
        """Backward through block k and its head; clip, step and forget the gradients if their batches are complete."""
        self.backward_block(k, loss)
        self.step_block(k)

    def backward_block(self, k: int, loss: Tensor, retain_graph: bool = False) -> None:
        """Add up gradients of block k's loss; ``retain_graph`` keeps its graph for another backward pass.

        Raises:
            UsageError: the loss is no scalar with a gradient.
        """
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            gradient = " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
            raise UsageError(
                f"The loss of a block is a scalar with a gradient, and {type(self).__name__} gives "
                f"{self.part_names[k]} {what}{gradient}."
            )
        self._losses[k] = loss.detach()
        self.manual_backward(loss / self._batches_of_step, retain_graph=retain_graph)

    def step_block(self, k: int) -> None:
        """Step block k's optimizer; with the last block the batch is learned from."""
        self.step_optimizer(k)
        if k + 1 == min(self.learners.stop, self.here.stop):
            self.count_step()

    def step_optimizer(self, k: int) -> None:
        """Clip, step block k's optimizer, forget its gradients; unless those of further batches are to come."""
        if self._steps_now:
            optimizer = self.trainer.optimizers[self.optimizer_index(k)]
            self.trainer.strategy.optimizer_step(optimizer, lambda: None)  # applies precision and hooks
            optimizer.zero_grad()

    def count_step(self) -> None:
        """One batch is learned from: trainer.global_step counts batches, not optimizers' steps."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients of the block that is being updated (they are unscaled by now)."""
        if self.clip is None and not self.logs_this_step:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        index = self.trainer.optimizers.index(optimizer)
        k = next(k for k in self.learners if self.optimizer_index(k) == index)
        norm = self.total_norm(k, [p.grad for p in parameters])
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        self.record(k, "grad_norm", norm)

    def total_norm(self, k: int, gradients: Sequence[Tensor]) -> Tensor:
        """Norm of gradients of block k together; a strategy that spreads them says so."""
        return nn.utils.get_total_norm(gradients)

    # -- optimizers and schedules: one of each per block ----------------------------------------

    def block_parameters(self, k: int) -> list[nn.Parameter]:
        """All that block k's optimizer updates: the block and its head; the final head for k = K."""
        return [*self.part_modules(k).parameters()]

    def part_modules(self, k: int) -> nn.ModuleList:
        """All that learns, or keeps something, with block k: the block and its head; the final head for k = K."""
        return nn.ModuleList([*self.blocks[k : k + 1], self.heads[k]])

    def part_optimizer(self, k: int) -> Optimizer:
        """A new optimizer of block k's parameters, or of the final head's."""
        return self.make_optimizer(self.block_parameters(k))

    def part_scheduler(self, k: int, optimizer: Optimizer) -> LRScheduler | None:
        """A new learning-rate schedule of block k's optimizer, or of the final head's: all parts have one, or none."""
        return self.make_scheduler(optimizer) if self.make_scheduler else None

    @override
    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """One optimizer and, if asked for, one schedule per block, and of the final head.

        Raises:
            UsageError: a fused optimizer with float16, whose gradients cannot be read.
        """
        optimizers = [*map(self.part_optimizer, range(self.schedule.parts))]
        if str(self.trainer.precision) == "16-mixed" and any(o.defaults.get("fused") for o in optimizers):
            raise UsageError(
                "A fused optimizer unscales float16 gradients out of sight, so that clipping and gradient norms would "
                "see scaled ones. Set fused: false, or use precision bf16-mixed."
            )
        schedulers = [self.part_scheduler(k, optimizer) for k, optimizer in enumerate(optimizers)]
        return optimizers, [scheduler for scheduler in schedulers if scheduler]

    def optimizer_index(self, k: int) -> int:
        """Which of :meth:`configure_optimizers` updates block k now, and which schedule belongs to it."""
        return k

    def _step_schedulers(self, interval: str) -> None:
        # Lightning steps no schedule under manual optimization.
        if self.trainer.lr_scheduler_configs and interval == self.scheduler_interval:
            for k in [*self.learners] * self.schedule.stride(self.current_epoch):
                scheduler = self.trainer.lr_scheduler_configs[self.optimizer_index(k)].scheduler
                scheduler.step()  # type: ignore[call-arg]  # no ReduceLROnPlateau

    # -- watching -------------------------------------------------------------------------------

    @property
    @override
    def part_names(self) -> list[str]:
        """What metrics call the parts: ``block1`` … ``blockK``, and ``final``, the final head."""
        return [*self.block_names, "final"][: self.schedule.parts]

    def record(self, k: int, metric: str, value: Tensor | float) -> None:
        """Note ``train/<name of block k>/<metric>`` for the loggers, in steps that are logged."""
        if self.logs_this_step:
            self._records[f"train/{self.part_names[k]}/{metric}"] = value

    @override
    def on_train_batch_start(self, batch: LabelledImages, batch_idx: int) -> None:
        """Decide whether optimizers step, and whether this batch is logged; freeze what has learned before."""
        first = batch_idx - batch_idx % self.accumulate
        self._batches_of_step = int(min(self.accumulate, self.trainer.num_training_batches - first))
        self._steps_now = batch_idx + 1 == first + self._batches_of_step
        if isinstance(ddp := self.trainer.model, DistributedDataParallel):
            ddp.require_backward_grad_sync = self._steps_now  # the processes' gradients are averaged once per step
        # Once in an epoch at least, however short it is.
        every = min(self.trainer.log_every_n_steps, int(self.trainer.num_training_batches))  # type: ignore[attr-defined]
        due = every > 0 and (self.global_step + 1) % every < self._batches_of_step
        self.logs_this_step = due and self._steps_now
        for part in (self.blocks, self.heads):
            part[: self.learners.start].eval().requires_grad_(False)  # Lightning puts all into training mode
        self._losses.clear()
        self._records.clear()

    @override
    def on_train_batch_end(self, outputs: object, batch: LabelledImages, batch_idx: int) -> None:
        """Stop at a loss that is no number; log; step the schedules."""
        self._stop_if_not_finite()
        if self.trainer.is_last_batch:  # validation comes before on_train_epoch_end
            self.learned = self.learners.stop
        if self.logs_this_step:
            for k, loss in self._losses.items():
                self.record(k, "loss", loss)
                self.record(k, "lr", self.trainer.optimizers[self.optimizer_index(k)].param_groups[0]["lr"])
            self.latest = {name: float(value) for name, value in self._records.items()}
            # Straight to the loggers: self.log takes 0.6 ms a metric, 40 ms a step at K = 16.
            for logger in self.loggers:
                logger.log_metrics(self.latest, step=self.global_step - 1)
        if self._steps_now:
            self._step_schedulers("step")

    @override
    def on_train_epoch_end(self) -> None:
        """Step the schedules that count epochs."""
        self._step_schedulers("epoch")

    def _stop_if_not_finite(self) -> None:
        if not self._losses:  # those that learn are elsewhere
            return
        finite = torch.stack(list(self._losses.values())).isfinite()
        if not finite.all():  # one wait for the device per step, not one per block
            k = list(self._losses)[int(finite.logical_not().nonzero()[0])]
            raise TrainingError(
                f"The loss of {self.part_names[k]} is {self._losses[k].item()} at step {self.global_step}. Lower the "
                "learning rate, set --model.clip 1.0, or see whether this loss suits the method; the checkpoints of "
                "earlier epochs are untouched."
            )

    # -- beside training ------------------------------------------------------------------------

    def walk(self, images: Tensor) -> Iterator[Tensor]:
        """Features of one block after the other, as evaluation computes them."""
        for block in self.blocks:
            images = block(images)
            yield images

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        named = zip(self.block_names[:last], self.walk(images), strict=False)
        return {f"{name}/gap": pooled(features) for name, features in named}

    @property
    def judged_modules(self) -> Sequence[nn.Module]:
        """Of each block what gives its ``judged_features`` (not averaged over positions) in training and evaluation."""
        return [*self.blocks]

    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Send the images through the blocks, where an online probe reads their features."""
        for _ in self.walk(batch.images):
            pass

    test_step = validation_step

    @property
    @override
    def learned_blocks(self) -> list[str]:
        return self.block_names[: self.learned]

    @property
    def why_one_place(self) -> str | None:
        """Why the blocks cannot learn on devices of their own; None if they can."""
        return None

    def plan(self) -> StepPlan:
        """What one training step does, for those who count what it costs."""
        passes = self.schedule.forward_passes, self.schedule.backward_passes
        alone = [range(k, k + 1) for k in range(self.schedule.frozen, self.schedule.parts)]
        return StepPlan([*self.blocks], [*self.heads], *passes, held_together=alone)

    def require_shared_batch(self, who: str) -> None:
        """Refuse what pairs outputs of blocks with a step's batch, if blocks learn from others.

        Raises:
            UsageError: they do.
        """
        if not self.blocks_share_batch:
            raise UsageError(
                f"{who} pairs what all blocks make of a batch with its labels, but those of {type(self).__name__} "
                f"learn from different batches: leave {who} out."
            )

    @property
    @override
    def why_one_process(self) -> str | None:
        return None

    @override
    def configure_callbacks(self) -> list[Callback]:
        """None: this is what Lightning asks for before it refuses the Trainer's options itself, without ours.

        Raises:
            UsageError: the Trainer shall clip gradients or accumulate them.
        """
        instead = "are each block's own: leave --trainer.{} out, and set --model.{}."
        if self.trainer.gradient_clip_val or self.trainer.gradient_clip_algorithm:
            raise UsageError(f"Clipped gradients {instead.format('gradient_clip_val', 'clip, the largest norm')}")
        if self.trainer.accumulate_grad_batches != 1:
            raise UsageError(f"Accumulated gradients {instead.format('accumulate_grad_batches', 'accumulate')}")
        return []

    @override
    def setup(self, stage: str) -> None:
        """Refuse what would train wrongly, or only more slowly.

        Raises:
            UsageError: processes under a strategy that is none for blocks, another number of epochs than all blocks
                take one by one, schedules that count steps of blocks with different numbers of epochs, compilation for
                a CPU, or an optimizer or schedule that cannot take a step.
        """
        require_supported_processes(self, self.trainer)
        if stage == "fit":
            rehearse(self.make_optimizer, self.make_scheduler, self.trainer.strategy.root_device)
            self._require_compiler_that_pays()
            short = self.trainer.fast_dev_run  # type: ignore[attr-defined]  # a connector of Lightning's sets it
            interval = self.scheduler_interval if self.make_scheduler else None
            self.schedule.require_fit(None if short else self.trainer.max_epochs, interval)
            self.learned = self.schedule.learners(0).stop  # a checkpoint that is resumed knows better

    def _require_compiler_that_pays(self) -> None:
        if self.compiled and self.trainer.strategy.root_device.type == "cpu":
            raise UsageError(
                "compile: true does not pay on a CPU: a step of ResNet-32 in 4 blocks took 1.02 to 1.04 times as long. "
                "Leave it out (--model.compile false)."
            )

    # -- checkpoints ------------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how many parts have learned."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["learned"] = self.learned

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.take_shape_of(checkpoint)

    @override
    def take_shape_of(self, checkpoint: Mapping[str, Any]) -> None:
        """Know how many parts had learned; earlier checkpoints tell of epochs alone."""
        self.learned = checkpoint.get("learned", self.schedule.learners(checkpoint["epoch"]).stop)


def _compile(parts: Sequence[nn.Module]) -> None:
    """Run each part through ``torch.compile``, whole batches and a smaller last one, with and without gradients.

    To torch these four forms of all parts are forms of one function, Module's call, of which it compiles 8 and runs
    the others as they are.
    """
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 4 * len(parts))
    for part in parts:
        part.compile()
