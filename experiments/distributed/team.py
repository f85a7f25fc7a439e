"""Processes that measure ways to train in lockstep, for ``bench --processes``."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cached_property, partial
from itertools import chain
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import nn
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from experiments.distributed.block_parallel import BlockParallel
from experiments.distributed.ddp import DDP
from experiments.distributed.pipelining import SCHEDULES, Pipeline, unit_seconds
from experiments.measure.traffic import Sent
from experiments.measure.turns import Stopwatch, now, threads
from experiments.measure.workbench import Workbench
from experiments.measure.yardstick import end_to_end
from losses.processes import Sharing
from models.classification import LocalClassification
from models.local_learning import LocalLearning
from models.networks.memory.saved_tensors import SavedTensorMeter

Meters = Mapping[str, Callable[[], float]]
"""Name → what reads it."""

NONE: Meters = {}

Figures = list[dict[str, float]]
"""What a measurement found: for each process, name → figure; nothing of a process that had no part in it."""

ALONE, APART, REPLICAS, BACKPROP = "one process", "blocks apart", "replicas", "replicas, backprop"
"""Ways to train; others are ``one process, n threads`` and ``schedule, n micro-batches`` of pipelining."""

_AHEAD = 4
"""Batches by which a process gets ahead of the next one: two are sent, and there is room for two."""

_TRIED = 3
"""Steps by which the best of several pipelines is chosen."""

HOUR = 3600
"""Seconds that processes wait for each other at most."""


def slowest(figures: Figures) -> float:
    """Seconds of a step of the slowest process."""
    return max(own["seconds"] for own in figures if own)


class WatchedBlocks(BlockParallel):
    """Blocks apart that know how long they compute and wait."""

    @override
    def configure_ddp(self) -> None:
        super().configure_ddp()
        self.step, self.room, self.input = (Stopwatch(self.root_device) for _ in range(3))
        if self._outbox:
            self._outbox.send = self.room(self._outbox.send)  # type: ignore[method-assign]  # of this one
        if self._inbox:
            batches = self._inbox.batches
            self._inbox.batches = lambda count: self._awaited(batches(count))  # type: ignore[method-assign]  # likewise

    def _awaited(self, batches: Iterator[Any]) -> Iterator[Any]:
        arrives = self.input(partial(next, batches, None))
        while (batch := arrives()) is not None:
            yield batch

    @override
    def training_step(self, batch: Batch, *args: Any, **options: Any) -> None:
        with self.step:
            super().training_step(batch, *args, **options)

    @property
    def meters(self) -> Meters:
        """Seconds so far: of computing, waiting for input, and for room to send."""
        return {
            "compute": lambda: self.step.seconds - self.room.seconds,
            "input": lambda: self.input.seconds,
            "room": lambda: self.room.seconds,
        }


class Team:
    """Processes that measure the same in lockstep; all know what each of them has found.

    Args:
        model: the method.
        data: gives image shape, augmentation, and the batch size of all processes together.
        trainer: knows the processes, which have met; gives device and precision.
        steps: that are measured in a repetition.

    Attributes:
        shares: the blocks of each process.
    """

    def __init__(self, model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, steps: int) -> None:
        self._model, self._whole = model, end_to_end(model)
        self._trainer, self._processes = trainer, trainer.world_size
        self._device, self._threads = trainer.strategy.root_device, torch.get_num_threads()
        part = copy(data)
        part.batch_size //= self._processes
        around = _AHEAD * (self._processes - 1)
        self._for_measuring = [Workbench(some, trainer, steps, around, around) for some in (data, part)]
        self._for_a_try = [Workbench(some, trainer, min(steps, _TRIED), 1, 1) for some in (data, part)]
        self._whole_batch, self._part_of_batch = self._for_measuring
        self._alone: Any = [dist.new_group([rank]) for rank in range(self._processes)][trainer.global_rank]
        self._sent, self._counts = Sent(), False
        choosing = BlockParallel(timeout=HOUR)
        with self._briefly():
            self._fit(self._whole_batch, model, choosing)
        self.shares = choosing.shares

    @contextmanager
    def _briefly(self) -> Iterator[None]:
        """Take few steps of what is only tried."""
        self._whole_batch, self._part_of_batch = self._for_a_try
        try:
            yield
        finally:
            self._whole_batch, self._part_of_batch = self._for_measuring

    # -- ways to train --------------------------------------------------------------------------

    def contenders(self) -> dict[str, Callable[[], Figures]]:
        """All but pipelines: name → measurement."""
        cores = self._threads * self._processes
        all_cores = {f"{ALONE}, {cores} threads": partial(self._in_one, cores)} if self._device.type == "cpu" else {}
        return {
            ALONE: partial(self._in_one, self._threads),
            **all_cores,
            APART: self._apart,
            REPLICAS: partial(self._replicas, self._model),
            BACKPROP: partial(self._replicas, self._whole),
        }

    def _in_one(self, cores: int) -> Figures:
        """The first process trains the method while the others wait."""
        if self._trainer.global_rank:
            return self._told({})
        Sharing.group = self._alone
        model = deepcopy(self._model)
        with threads(cores):
            return self._told(self._counted(model, partial(self._whole_batch.per_step, model)))

    def _apart(self) -> Figures:
        first_blocks = [share.start + 1 for share in self.shares]
        strategy = WatchedBlocks(first_blocks, timeout=HOUR)
        return self._told(self._fit(self._whole_batch, self._model, strategy, strategy.meters))

    def _replicas(self, model: LocalLearning) -> Figures:
        return self._told(self._fit(self._part_of_batch, model, DDP(timeout=HOUR)))

    def _fit(
        self,
        place: Workbench,
        model: LocalLearning,
        strategy: DDP,
        meters: Meters = NONE,
    ) -> dict[str, float]:
        model, trainer = deepcopy(model), self._trainer
        several: dict[str, Any] = {"strategy": strategy, "devices": trainer.num_devices, "num_nodes": trainer.num_nodes}
        fit = partial(place.per_step, model, use_distributed_sampler=False, **several)
        return self._counted(model, fit, meters)

    def pipelines(self) -> tuple[dict[str, Callable[[], Figures]], dict[str, float], dict[str, str]]:
        """Pipelining by torch, each schedule at its best number of micro-batches, which a few steps choose.

        Returns:
            Name → measurement of the best; name → seconds of a step of all; name → why it cannot be run.
        """
        if not isinstance(self._whole, LocalClassification):
            return {}, {}, {"pipelining": "its micro-batches would change a loss that compares the images of a batch"}
        images = len(self._whole_batch.sample.labels)
        counts = [count for count in (self._processes * 2**i for i in range(4)) if not images % count]
        best, tried, not_run = {}, {}, {}
        for schedule in SCHEDULES:
            measures: dict[str, Callable[[], Figures]] = {}
            for count in counts:
                name, measure = f"{schedule}, {count} micro-batches", self.pipeline(schedule, count)
                try:
                    with self._briefly():
                        tried[name] = slowest(measure())
                except ValueError as fault:  # of torch's, in all processes
                    not_run[name] = str(fault)
                else:
                    measures[name] = measure
            if measures:
                name = min(measures, key=lambda name: tried[name])
                best[name] = measures[name]
        return best, tried, not_run

    def pipeline(self, schedule: str, micro_batches: int) -> Callable[[], Figures]:
        """A measurement of pipelining, of a network whose loss is a mean over images."""
        return partial(self._in_stages, schedule, micro_batches)

    def _in_stages(self, schedule: str, micro_batches: int) -> Figures:
        whole = deepcopy(self._whole)
        assert isinstance(whole, LocalClassification)
        pipeline = Pipeline(whole, self._unit_seconds, schedule, micro_batches, self._device)
        loop = partial(self._whole_batch.per_plain_step, partial(pipeline.step, self._whole_batch.sample))
        return self._told(self._counted(whole, loop))

    @cached_property
    def _unit_seconds(self) -> list[float]:
        """Of each unit of the network, in a part of a batch, in all processes at once."""
        assert isinstance(self._whole, LocalClassification)
        part = self._for_measuring[1].sample
        seconds = torch.tensor(unit_seconds(deepcopy(self._whole), part.images[: -(-len(part.images) // 4)]))
        dist.all_reduce(seconds := seconds.to(self._device))
        return seconds.tolist()

    # -- what they take -------------------------------------------------------------------------

    def _counted(
        self,
        model: nn.Module,
        measure: Callable[[Meters], dict[str, float]],
        meters: Meters = NONE,
    ) -> dict[str, float]:
        """Seconds of a step; or in place of those, which counting changes, the bytes that are sent and held."""
        if not self._counts:
            return measure({"seconds": partial(now, self._device), **meters})
        sent = self._sent.bytes
        with self._sent, SavedTensorMeter(chain(model.parameters(), model.buffers())) as held:
            found = measure({name: partial(sent.__getitem__, name) for name in sent})
        return found | {"peak": held.peak}

    def footprint(self, measure: Callable[[], Figures]) -> Figures:
        """What a way to train takes: ``peak``, and by operation of torch.distributed the bytes of a step."""
        self._counts = True
        try:
            with self._briefly():
                return measure()
        finally:
            self._counts = False

    def _told(self, own: dict[str, float]) -> Figures:
        """What all processes have."""
        figures: Figures = [{}] * self._processes
        dist.all_gather_object(figures, own)
        return figures
