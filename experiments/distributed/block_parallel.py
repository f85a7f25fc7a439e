"""Blocks on devices of their own: a pipeline without a way back.

    process 0        process 1        process 2
    images ──► block 1, 2 ──► block 3, 4 ──► block 5
                 │ losses       │ losses       │ loss

Each process trains a run of consecutive blocks and hands on what the last of them makes of a batch, while it goes on
with the next batch. Nothing comes back: no gradient, no waiting for one. Such a line may stand several times side by
side, each with a part of every batch: then each block's gradients are averaged over the lines.
"""

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.utils import _sync_module_states
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.files import note
from experiments.distributed.ddp import DDP
from experiments.distributed.figures import FiguresForFirst, FiguresOfOthers
from experiments.distributed.groups_apart import GroupsApart
from experiments.distributed.link import Arrival, Inbox, Outbox, StoppedError, set_random_state
from experiments.distributed.shares import cheapest_cut, part_seconds
from losses.errors import UsageError
from models.local_learning import LocalLearning
from ranges import PositiveInt

_BUCKET = 2**28  # bytes of weights that are sent at a time


class BlockParallel(DDP):
    """Every process trains a run of consecutive blocks: ``--trainer.strategy block_parallel --trainer.devices 2``.

    The first process loads the images. It hands on detached features, labels, and the state of the random numbers: the
    weights are bit for bit (on a CPU) those of one process. Between epochs all processes get all weights; they share
    out what is evaluated, and the first one writes an ordinary checkpoint.

    Args:
        first_blocks: number of the first block of each process of a line, from 1, as ``[1, 3]``; by default the cut
            whose slowest process is fastest, by times that are measured before training, in all processes at once.
        replicas: lines of processes, each of which has all blocks, and a batch of its own in every step.
        groups_apart: processes that share out the neuron groups of the same blocks.
        wire: what features are sent in; ``bfloat16`` halves the traffic, and rounds.
        timeout: seconds after which a process that does not answer, or does not come, counts as lost.

    Raises:
        UsageError: fewer blocks than processes in a line, replicas that do not divide the processes, or a method whose
            blocks do not learn apart.
    """

    def __init__(
        self,
        first_blocks: list[PositiveInt] | None = None,
        replicas: PositiveInt = 1,
        groups_apart: PositiveInt = 1,
        wire: Literal["as_is", "bfloat16"] = "as_is",
        timeout: PositiveInt = 600,
    ) -> None:
        super().__init__(timeout)
        self.first_blocks, self.replicas, self.groups_apart, self.wire = first_blocks, replicas, groups_apart, wire
        self.shares: list[range] = []
        self._outbox: Outbox | None = None
        self._inbox: Inbox | None = None
        self._figures: FiguresOfOthers | None = None
        self._groups: GroupsApart | None = None
        self._spread = True  # whether all processes have all weights

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """All processes of a line work on the same batch."""
        return {"num_replicas": self.replicas, "rank": self.global_rank // (self.stages * self.groups_apart)}

    @property
    @override
    def sharing(self) -> Any:
        """Those that train the same blocks."""
        return self._mesh.get_group("data")

    @property
    def stages(self) -> int:
        """Runs of blocks: processes in a line, of which as many stand abreast as groups are apart."""
        return self.world_size // (self.replicas * self.groups_apart)

    @property
    def stage(self) -> int:
        """Place of this process in its line, from 0."""
        return self.global_rank // self.groups_apart % self.stages

    @cached_property
    def _mesh(self) -> DeviceMesh:
        """Ranks (replica, stage, share of the groups), in this order."""
        shape, names = (self.replicas, self.stages, self.groups_apart), ("data", "block", "group")
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    @cached_property
    def _loading(self) -> Any:
        """Those that load images: the first of every line."""
        return dist.new_group(self._mesh.mesh[:, 0].flatten().tolist(), timeout=self._timeout)

    # -- before training ------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer) -> None:
        """Meet, and prepare the model.

        Raises:
            UsageError: so many processes do not stand in so many lines.
        """
        if self.world_size % (self.replicas * self.groups_apart):
            raise UsageError(
                f"replicas × groups_apart, {self.replicas} × {self.groups_apart}, must divide the number of processes, "
                f"{self.world_size}: choose others, or another --trainer.devices."
            )
        if self.replicas == 1:
            self._layer_sync = None  # BatchNorm sees the whole batch as it is
        super().setup(trainer)

    @override
    def configure_ddp(self) -> None:
        """Choose who trains which blocks."""
        model, rank, abreast = self.method, self.global_rank, self.groups_apart
        if why := why_not_apart(model, self.stages):
            raise UsageError(f"{why}: use --trainer.strategy ddp, or fewer --trainer.devices.")
        if any(getattr(part, "gather_distributed", False) for part in model.modules()):
            raise UsageError(
                "gather_distributed gathers from all processes, and so from other blocks: leave it out. Embeddings of "
                "all replicas are gathered without it."
            )
        self._loading  # noqa: B018  # a group is made by all processes at once
        self._sync(model, 0)
        everywhere = self._groups_of(model, range(model.schedule.parts))
        if everywhere:
            everywhere.require_groups()
            everywhere.narrow()
        self.shares = self._shares(model)
        if everywhere:
            everywhere.widen(learned=False)
        self._tell_shares(model)
        model.here = self.shares[self.stage]
        self._groups = self._groups_of(model, model.here)
        links = dist.new_group(timeout=self._timeout)  # a new one: in an old one, receives may wait that met no batch
        assert isinstance(links, dist.ProcessGroup)  # all are in it
        self._outbox = Outbox(rank + abreast, links, self.root_device) if self.stage < self.stages - 1 else None
        self._inbox = Inbox(rank - abreast, links, self.root_device) if self.stage else None
        self._log_together(model)
        callbacks: list[L.Callback] = model.trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
        callbacks.insert(0, LambdaCallback(on_train_epoch_end=self._end_epoch))  # before those that look at weights
        # The schedules of blocks that learn elsewhere go on here, too: they are saved by the first process.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        loop = model.trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = self._stop_if_told  # type: ignore[method-assign]  # its own waits for all

    def _groups_of(self, model: LocalLearning, parts: range) -> GroupsApart | None:
        return GroupsApart(model, self._mesh.get_group("group"), parts) if self.groups_apart > 1 else None

    @property
    def method(self) -> LocalLearning:
        """What is trained."""
        assert isinstance(self.lightning_module, LocalLearning)
        return self.lightning_module

    def _shares(self, model: LocalLearning) -> list[range]:
        """The parts of each process of a line."""
        if self.first_blocks is None:
            seconds = torch.tensor(part_seconds(model), device=self.root_device)
            dist.all_reduce(seconds)
            last = model.num_blocks - 1  # a final head goes with the last block, however slow it was found
            starts = cheapest_cut([*seconds[:last].tolist(), float(seconds[last:].sum())], self.stages)
        else:
            starts = [number - 1 for number in self.first_blocks]
        rising = starts[:1] == [0] and sorted(set(starts)) == starts and starts[-1] < model.num_blocks
        if len(starts) != self.stages or not rising:
            raise UsageError(
                f"first_blocks says with which of {model.num_blocks} blocks each of {self.stages} processes "
                f"begins: that many numbers, rising from 1, not {self.first_blocks}."
            )
        return [range(a, b) for a, b in zip(starts, [*starts[1:], model.schedule.parts], strict=True)]

    def _tell_shares(self, model: LocalLearning) -> None:
        """Say who trains what, in the first line."""
        shares = zip(self._mesh.mesh[0].tolist(), self.shares, strict=True)
        told = [f"{', '.join(model.part_names[k] for k in share)} in {_numbered(ranks)}" for ranks, share in shares]
        if self.global_rank == 0:
            note(f"Blocks apart: {'; '.join(told)}.")

    def _log_together(self, model: LocalLearning) -> None:
        trainer, store = model.trainer, dist.PrefixStore("figures", _get_default_store())
        first, *others = (int(rank) for rank in self._mesh.mesh[0, :, 0])
        if self.global_rank not in (first, *others):
            trainer.loggers = []  # what is logged are figures of the first line
        elif self.stage:
            own = [f"train/{model.part_names[k]}/" for k in model.here]
            trainer.loggers = [FiguresForFirst(store, self.global_rank, own)]
        elif trainer.loggers:
            self._figures = FiguresOfOthers(store, others, trainer.loggers, model)
            trainer.loggers = [*trainer.loggers, self._figures]

    # -- batches --------------------------------------------------------------------------------

    @override
    def process_dataloader(self, dataloader: Any) -> Any:
        """What other processes than the first train on arrives from the one before."""
        if self._inbox and self.method.trainer.training:
            return Arrivals(dataloader, self._inbox, self._outbox)
        return dataloader

    @override
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """What has arrived is on the device, and brings the random numbers to go on with."""
        if not isinstance(batch, Arrival):
            return super().batch_to_device(batch, device, dataloader_idx)
        set_random_state(batch.random_state, self.root_device)
        trainer = self.method.trainer
        data = trainer.datamodule  # type: ignore[attr-defined]  # a connector of Lightning's sets it
        if isinstance(data, ImageDataModule):
            data.epochs.step = trainer.global_step + 1  # as it does when images come to the device
        sent: Batch = batch.tree
        assert sent.arrived
        first, x = sent.arrived
        if self.wire == "bfloat16":
            x = tree_map_only(Tensor, Tensor.float, x)
        return sent._replace(arrived=(first, x))

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Learn here what is learned here, and elsewhere the rest."""
        self._part()

    @override
    def training_step(self, batch: Batch, *args: Any, **options: Any) -> None:
        """Train the blocks that are here, and send on what they make of the batch."""
        x = super().training_step(batch, *args, **options)
        model = self.method
        if not set(model.here) & set(model.learners):
            model.count_step()  # those that learn in this epoch are elsewhere
        if self._outbox:
            self._outbox.send(self._parcel(batch, x))

    def _parcel(self, batch: Batch, x: Any) -> Batch:
        """Of a batch what the next blocks and their losses read."""
        views: Any = tuple((strength, None, None) for strength, *_ in batch.views)
        images: Any = batch.images if self.method.losses_read_images else None
        if self.wire == "bfloat16":
            x = tree_map_only(Tensor, Tensor.bfloat16, x)
        return batch._replace(images=images, views=views, arrived=(self.method.here.stop, x))

    def _stop_if_told(self) -> None:
        """After a termination signal, which the first process gets, all stop at the same batch."""
        told = self.method.trainer.received_sigterm
        if not self.stage and len(self._mesh.mesh[:, 0].flatten()) > 1:
            of_first = torch.tensor([told], device=self.root_device)
            dist.broadcast(of_first, 0, self._loading)
            told = bool(of_first)
        if told:
            if self._outbox:
                self._outbox.stop()
            raise SIGTERMException

    def _end_epoch(self, *_: Any) -> None:
        """Whoever looks at weights between epochs sees those of all."""
        self.spread()
        if self._outbox:
            self._outbox.end_epoch()

    def _part(self) -> None:
        """From here on weights differ between processes."""
        self._spread = False
        if self._groups:
            self._groups.narrow()

    # -- all weights to all processes -----------------------------------------------------------

    def spread(self) -> None:
        """Give every process the weights of all blocks, if they are not those already."""
        if self._spread:
            return
        if self._outbox:
            self._outbox.drain()
        if self._groups:
            self._groups.widen()
        model = self.method
        for owner, share in zip(self._mesh.mesh[0, :, 0].tolist(), self.shares, strict=True):
            # The first line's, though only BatchNorm's statistics differ.
            self._sync(nn.ModuleList(map(model.part_modules, share)), owner)
        self._spread = True

    def _sync(self, part: nn.Module, owner: int) -> None:
        """Give all processes the weights and buffers that one of them has."""
        assert dist.group.WORLD
        _sync_module_states(part, dist.group.WORLD, _BUCKET, owner, (), broadcast_buffers=True)

    def merged(self, own: dict[str, Any]) -> dict[str, Any]:
        """What all processes have of something, each of its own blocks."""
        all_of_them: list[dict[str, Any]] = [{}] * self.world_size
        dist.all_gather_object(all_of_them, own)
        return {name: part for one in all_of_them for name, part in one.items()}

    @override
    def on_validation_start(self) -> None:
        """Evaluate what has been learned so far; once training is over, that is everywhere."""
        if self.shares:
            self.spread()
        else:
            super().on_validation_start()

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        self.spread()  # a resumed run begins with whole weights, too

    @override
    def on_train_end(self) -> None:
        self.spread()
        if self._figures:
            self._figures.collect()  # what others have left by now is all

    @override
    def teardown(self) -> None:
        """The model is one that trains in one process again."""
        if isinstance(self.lightning_module, LocalLearning):
            self.method.here = range(self.method.schedule.parts)
        if self._groups:
            self._groups.leave()
        super().teardown()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        if self.shares:
            self.spread()
        return super().lightning_module_state_dict()

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the optimizer of a part remembers, which only its own process knows."""
        if not self.shares:
            return super().optimizer_state(optimizer)
        k = self.optimizers.index(optimizer)
        own = super().optimizer_state(optimizer)
        if self._groups and k in self.method.here:
            own = self._groups.whole_state(k, own)
        state = [own]
        stage = next(stage for stage, share in enumerate(self.shares) if k in share)
        dist.broadcast_object_list(state, int(self._mesh.mesh[0, stage, 0]))
        return state[0]

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Of the parts that learn elsewhere only the rates, from which their schedules go on here too."""
        self._part()
        for k, state in enumerate(checkpoint["optimizer_states"]):
            if k not in self.method.here:
                state = state | {"state": {}}
            elif self._groups:
                state = self._groups.own_state(k, state)
            self.optimizers[k].load_state_dict(state)


def why_not_apart(model: LocalLearning, processes: int) -> str | None:
    """Why so many processes cannot share the blocks: there are fewer, or they do not learn apart; None if they can."""
    why = f"are {model.num_blocks}" if model.num_blocks < processes else model.why_one_place
    return why and f"{processes} processes cannot share the blocks of {type(model).__name__}, which {why}"


class Arrivals:
    """Takes the place of a loader of images: batches that the process before hands on, as many as it loads.

    Args:
        loader: of the images, which are not loaded here.
        inbox: where batches arrive.
        outbox: who is to be told of an end.
    """

    def __init__(self, loader: Any, inbox: Inbox, outbox: Outbox | None) -> None:
        self._loader, self._inbox, self._outbox = loader, inbox, outbox

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Arrival]:
        try:
            yield from self._inbox.batches(sum(1 for _ in self._loader.batch_sampler or self._loader))
        except StoppedError:
            if self._outbox:
                self._outbox.stop()
            raise SIGTERMException from None


def _numbered(ranks: list[int]) -> str:
    """``process 0``, or ``processes 0, 1``."""
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


for _name in ("block_parallel", "blockparallel"):  # Lightning looks a class's name up in lower case
    StrategyRegistry.register(_name, BlockParallel, description="Blocks on devices of their own")
