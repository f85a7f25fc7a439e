"""Self-defined targets beside few labels: images without one are told to be of the class that wins.

D. Liu, J. Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, "Unsupervised End-to-End Training with a Self-Defined
Target", Neuromorphic Computing and Engineering 4 (4), 2024: semi-supervised training, by backpropagation, K = 1.

    pretraining           images with labels:     L(z, label)
    then, in turn         images without labels:  σ(z) − H ──► the largest: class c, L(z, c)      σ: sigmoid
                          images with labels:     L(z, label)

Each of the three has an optimizer and a schedule of its own. K > 1 is this suite's own.
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from losses.errors import UsageError
from losses.winners import WinnerTakeAll
from models.method import LabelledImages
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import NetworkCallable
from models.parts.rehearsal import SchedulerCallable, rehearse
from ranges import NonNegativeFloat, PositiveInt

_LABELLED, _UNLABELLED, _PRETRAINING = range(3)


class SemiSupervisedTarget(DecoupledGreedy):
    """Classifiers that learn from few labels, and from the classes that win on all other images.

    The data say how many labels there are (``--data.labels``). An epoch of the Trainer goes through the images with
    labels or through those without; after the pretraining they take turns, those without labels first. One
    published epoch are two of these.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        num_blocks: K; 1 is as published.
        pretraining_epochs: on images with labels alone, to begin with.
        rate: γ of the homeostasis, which begins each epoch anew (:class:`losses.WinnerTakeAll` with one winner).
        pretraining_optimizer: parameters → optimizer of the pretraining, once per block.
        pretraining_scheduler: optimizer → its schedule, which counts epochs of its kind.
        unlabelled_optimizer: the same for images without labels; ``optimizer`` is that for images with labels.
        unlabelled_scheduler: the same.
        options: optimizer, output_loss and the other arguments of :class:`DecoupledGreedy`.

    Raises:
        UsageError: blocks learn one after the other.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: PositiveInt = 1,
        pretraining_epochs: PositiveInt = 150,
        rate: NonNegativeFloat = 0.1,
        pretraining_optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3),
        pretraining_scheduler: SchedulerCallable | None = None,
        unlabelled_optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-4),
        unlabelled_scheduler: SchedulerCallable | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, image_shape, num_classes, num_blocks, **options)
        if self.schedule.lengths:
            raise UsageError("Labels and winners take turns for all blocks at once: leave epochs_per_block out.")
        self.pretraining_epochs = pretraining_epochs
        self.targets = nn.ModuleList(WinnerTakeAll(num_classes, winners=1, rate=rate) for _ in self.heads)
        self._others = (unlabelled_optimizer, unlabelled_scheduler), (pretraining_optimizer, pretraining_scheduler)

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """The output loss of labels or, of images without any, of the classes that win."""
        if self.has_labels:
            return super().local_loss(k, features, batch)
        logits = self.heads[k](features)
        return self.prediction_loss(logits, self.winners(k, logits.detach().sigmoid()))

    def winners(self, k: int, outputs: Tensor) -> Tensor:
        """Classes that win for block k, ``(B,)``, by outputs ``(B, classes)`` from which H is taken off and learns."""
        target: Tensor = self.targets[k](outputs, torch.ones_like(outputs))
        return target.argmax(1)

    @property
    def has_labels(self) -> bool:
        """Whether the images of this epoch have labels."""
        return self._kind(self.current_epoch) != _UNLABELLED

    def _kind(self, epoch: int) -> int:
        if epoch < self.pretraining_epochs:
            return _PRETRAINING
        return _LABELLED if (epoch - self.pretraining_epochs) % 2 else _UNLABELLED

    @override
    def optimizer_index(self, k: int) -> int:
        return self._kind(self.current_epoch) * self.schedule.parts + k

    @override
    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """Those for images with labels, for images without, and of the pretraining.

        Raises:
            UsageError: some have a schedule and others have not.
        """
        optimizers, schedulers = super().configure_optimizers()
        for make_optimizer, make_scheduler in self._others:
            made = [make_optimizer(self.block_parameters(k)) for k in range(self.schedule.parts)]
            optimizers += made
            schedulers += [make_scheduler(one) for one in made] if make_scheduler else []
        if len(schedulers) not in (0, len(optimizers)):
            raise UsageError("scheduler, unlabelled_scheduler and pretraining_scheduler come all together, or none.")
        return optimizers, schedulers

    @override
    def on_train_epoch_start(self) -> None:
        """All classes win as easily again."""
        for target in self.targets:
            assert isinstance(target, WinnerTakeAll)
            target.begin_epoch()

    @override
    def on_train_epoch_end(self) -> None:
        """Step the schedules; choose the images of the next epoch."""
        super().on_train_epoch_end()
        self._select(self.current_epoch + 1)

    def _select(self, epoch: int) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # a connector of Lightning's sets it
        data.select_labelled(self._kind(epoch) != _UNLABELLED)

    # -- beside training ------------------------------------------------------------------------

    @property
    @override
    def why_one_process(self) -> str | None:
        return "lets images with and without labels take turns in one process"

    @override
    def setup(self, stage: str) -> None:
        """Begin with the images that have labels."""
        super().setup(stage)
        if stage == "fit":
            for others in self._others:
                rehearse(*others, self.trainer.strategy.root_device)
            self.trainer.datamodule.reload_every_epoch()  # type: ignore[attr-defined]  # as above
            self._select(0)
