"""Layer-wise and partition-wise training: one block after the other, each with a head that is then thrown away.

    images ──► block 1 … k − 1, frozen ──► block k ──► head k, loss k        epochs (k − 1)·E … k·E

A. Øland, "Efficient Deep Learning" (PhD thesis, CMU-CS-24-147, 2024), whose text was not available: this is
our reading, with the heads of E. Belilovsky, M. Eickenberg, E. Oyallon, "Greedy Layerwise Learning Can Scale
to ImageNet" (ICML 2019). Blocks that learn all at once are :class:`models.DecoupledGreedy`.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from losses.errors import UsageError
from models.local_learning import LabelledImages
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import NetworkCallable, NetworkError
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead, HeadCallable
from models.networks.layers.overparameterized import collapse, overparameterize
from models.parts.feature_store import FeatureStore, StoredFeatures
from models.parts.regularization import Regularization


class Layerwise(DecoupledGreedy):
    """Sequential training of blocks of p units; p = 1 is layer-wise, p = all units is backpropagation.

    While block k learns, the blocks before it are frozen and in evaluation mode, those behind it idle;
    ``val/top1`` is the accuracy of head k, so its curve shows what each further block adds. Every
    block has an optimizer and a schedule of its own, which begin with it; a finished block's head and
    optimizer state are freed. ``train/block<k>/seconds`` is the time its epochs took.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        units_per_block: p, 1 by default; a last block may be smaller.
        num_blocks: K, instead of p: the network is then cut by ``cut``.
        cut: where to cut into K blocks.
        epochs_per_block: E; ``trainer.max_epochs`` is K·E.
        head: auxiliary head of blocks 1 … K − 1, a class from ``models.networks``.
        last_head: head of block K, which predicts in the end; the network's own classifier by default.
        keep_heads: keep the heads of finished blocks: all are evaluated, and their ensemble.
        regularization: of the learning block.
        store: keep the features of the frozen blocks instead of computing them in every epoch.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Raises:
        NetworkError: p is none or more than the network has units, it cannot be cut as asked, or p and K are both
            given; the network or a head does not fit the images.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        units_per_block: int | None = None,
        num_blocks: int | None = None,
        cut: Cut = Cut(),
        epochs_per_block: int = 10,
        head: HeadCallable = AuxHead,
        last_head: HeadCallable | None = None,
        keep_heads: bool = False,
        regularization: Regularization = Regularization(),
        store: FeatureStore | None = None,
        **training: Any,
    ) -> None:
        if num_blocks is not None and units_per_block is not None:
            raise NetworkError(
                f"Blocks are cut by units_per_block, here {units_per_block}, or by num_blocks, here {num_blocks}, not "
                "by both: set one to null, as with --model.units_per_block null."
            )
        if num_blocks is None:
            with torch.device("meta"):  # only to see the names: no random numbers are drawn for it
                names = network(image_shape, num_classes).unit_names
            num_blocks, cut = _every(1 if units_per_block is None else units_per_block, names)
        super().__init__(
            network,
            image_shape,
            num_classes,
            num_blocks,
            cut,
            head,
            last_head,
            epochs_per_block=epochs_per_block,
            **training,
        )
        self.keep_heads, self.regularization = keep_heads, regularization
        self.store = store.for_epochs(epochs_per_block) if store else None
        self.disturb = regularization.disturbance()
        for block in self.blocks:
            overparameterize(block, regularization.overparameterize)
        self._all_heads = [copy.deepcopy(head).to("meta") for head in self.heads]  # for cost: dropped ones too
        self._finished = 0
        self._reached = len(self.blocks)  # in training the number of the block that learns
        self._stored: StoredFeatures | None = None
        self._stored_after = 0  # number of the block whose features are stored; 0: none are
        self._seconds = 0.0
        self._figures: dict[str, float] = {}

    # -- the learning block -------------------------------------------------------------------------

    def block_output(self, k: int, x: Tensor) -> Tensor:
        """Features of block k; the input of the block that learns is disturbed."""
        return super().block_output(k, self.disturb(x) if k in self.learners else x)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """One optimizer and schedule per block, with raised weight decay.

        Raises:
            UsageError: a factor, and no weight decay that it could raise.
        """
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

    def on_train_start(self) -> None:
        """Start the clock."""
        self._tick = time.perf_counter()

    def on_train_batch_start(self, batch: LabelledImages, batch_idx: int) -> None:
        """When a block begins: store what the frozen blocks hand on."""
        super().on_train_batch_start(batch, batch_idx)
        learner = self.learners.start
        self._reached = learner + 1
        self._finish_before(learner)  # if a checkpoint was written within the end of an epoch
        if self.store and self._stored_after < learner:
            with isolate_rng():  # a resumed run stores anew: the step's random numbers stay the same
                self._store_features(self.store, learner)

    def take_shape_of(self, weights: Mapping[str, Tensor]) -> None:
        """Become the model that these weights were saved from: its finished heads and factors are gone."""
        for k, block in enumerate(self.blocks):
            if not any(name.startswith(f"heads.{k}.") for name in weights):
                self.heads[k] = nn.Identity()
            if not any(name.startswith(f"blocks.{k}.") and ".parametrizations." in name for name in weights):
                collapse(block)

    def on_train_epoch_end(self) -> None:
        """Step the schedule; finish a block that has had its epochs: checkpoints are written after this."""
        super().on_train_epoch_end()
        now = time.perf_counter()
        self._seconds, self._tick = self._seconds + now - self._tick, now
        if (self.current_epoch + 1) % self.epochs_per_block == 0:
            self.log(f"train/{self.block_names[self.learners.start]}/seconds", self._seconds)
            self._seconds = 0.0
            self._finish_before(self.learners.stop)

    def _finish_before(self, stop: int) -> None:
        """Free what only the training of the first ``stop`` blocks needed."""
        for k in range(self._finished, stop):
            collapse(self.blocks[k])
            if k < self.num_blocks - 1 and not self.keep_heads:
                self.heads[k] = nn.Identity()
            optimizer = self._optimizers()[0][k]
            optimizer.state.clear()
            optimizer.param_groups = self.make_optimizer(self.block_parameters(k)).param_groups
        self._finished = max(self._finished, stop)

    def on_fit_end(self) -> None:
        """Free the store."""
        self._reached = len(self.blocks)
        if self._stored:
            self._stored.close()
        self._stored, self._stored_after = None, 0

    # -- the store ----------------------------------------------------------------------------------

    @property
    def first_block(self) -> int:
        """The first block whose input is not stored."""
        return self._stored_after

    def network_input(self, batch: LabelledImages) -> Tensor:
        """The images, or what is stored of them."""
        if self._stored is None:
            return batch.images
        number = self.current_epoch % self.epochs_per_block % self.store.passes
        return self._stored.read(number, batch.indices.cpu()).to(batch.images.device)

    @torch.no_grad()
    def _store_features(self, store: FeatureStore, stop: int) -> None:
        """Replace what is stored by what the first ``stop`` blocks hand on."""
        new = None
        for number in range(store.passes):
            for indices, x in self._stored_or_images(number):
                features = self._frozen(x, self._stored_after, stop)
                new = new or store.new(len(self._data.training_images), features.shape[1:])
                new.write(number, indices.cpu(), features)
        if self._stored:
            self._stored.close()
        self._stored, self._stored_after = new, stop
        self._compare_with_recomputed(stop)

    def _stored_or_images(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and features, or at first augmented images, of pass ``number``, in order."""
        if self._stored is None:
            yield from ((batch.indices, batch.images) for batch in self._data.training_pass(number, self.device))
        else:
            for indices in torch.arange(len(self._stored)).split(self._data.batch_size):
                yield indices, self._stored.read(number, indices).to(self.device)

    def _frozen(self, x: Tensor, start: int, stop: int) -> Tensor:
        for block in self.blocks[start:stop]:
            x = self.store.rounded(block(x))
        return x

    def _compare_with_recomputed(self, stop: int) -> None:
        """See on one batch that what was handed from store to store is what the images give."""
        batch = next(iter(self._data.training_pass(0, self.device)))
        stored, right = self._stored.read(0, batch.indices.cpu()), self._frozen(batch.images, 0, stop).cpu()
        if not torch.allclose(stored, right, rtol=1e-3, atol=1e-3 * float(right.abs().max())):
            raise UsageError(
                f"Stored features of block {stop} differ from recomputed ones by {(stored - right).abs().max():.3g}. "
                "Does the data module augment a pass twice in the same way? If not, train without a store."
            )

    def setup(self, stage: str) -> None:
        """Refuse what would train wrongly, or fail when the second block begins.

        Raises:
            UsageError: the store's folder cannot be written.
        """
        super().setup(stage)
        if stage == "fit" and self.store:
            self.store.require_folder()

    @property
    def _data(self) -> Any:
        data = self.trainer.datamodule
        if data is None:
            raise UsageError("A feature store needs the images in order: give the Trainer a data module.")
        return data

    @property
    def training_heads(self) -> list[nn.Module]:
        """All heads, also those that are dropped by now."""
        return self._all_heads

    @property
    def forward_passes(self) -> list[float]:
        """With a store frozen blocks are not run, but for the few passes that fill it."""
        return self.backward_passes if self.store else super().forward_passes

    # -- evaluation ---------------------------------------------------------------------------------

    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Of the block that learns, and of those before it whose heads are kept."""
        logits = {}
        for k in range(self._reached):
            images = self.blocks[k](images)
            if self.keep_heads or k == self._reached - 1:
                logits[self.block_names[k]] = self.heads[k](images)
        return logits

    @property
    def monitor(self) -> str:
        """The last block's prediction: earlier blocks' come from another network."""
        return f"val/{self.block_names[-1]}/top1"

    # -- checkpoints --------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the time that the learning block has had so far, and what finished ones reached."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["block_seconds"] = self._seconds
        figures = self.trainer.callback_metrics.items()
        checkpoint["figures"] = {name: float(value) for name, value in figures if "/block" in name}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with a checkpoint's heads, clock and figures."""
        self.take_shape_of(checkpoint["state_dict"])
        self._seconds, self._figures = checkpoint["block_seconds"], checkpoint["figures"]

    def on_validation_epoch_end(self) -> None:
        """After a resume, log once more what finished blocks reached: the summary tells of the whole run."""
        if not self.trainer.sanity_checking:
            finished = [f"/{name}/" for name in self.block_names[: self.learners.start]]
            earlier = self._figures.items()
            self.log_dict({name: value for name, value in earlier if any(block in name for block in finished)})
            self._figures = {}


def _every(units: int, names: list[str]) -> tuple[int, Cut]:
    """Number of blocks of that many units, and the cut that makes them."""
    if not 1 <= units <= len(names):
        raise NetworkError(
            f"A block of {units} units cannot be made of a network of {len(names)} ({names[0]} … {names[-1]}). Choose "
            f"units_per_block between 1, layer-wise training, and {len(names)}, backpropagation."
        )
    ends = names[units - 1 : -1 : units]
    return len(ends) + 1, Cut(after=ends)
