"""Backpropagation cut into stages, by torch's pipelining: what ``bench --processes`` compares blocks apart with.

    images ──► stage 1 ──► stage 2 ──► loss
               stage 1 ◄── stage 2 ◄──┘

Each process has a stage, or two; a batch goes in micro-batches.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import fsum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class
from typing_extensions import override

from datamodules.batch import Batch
from experiments.measure.turns import seconds as timed
from models.classification import LocalClassification
from models.networks.cut import balanced_stops

_STEPS = 3
"""In which the time of a unit is measured."""


def _one(rank: int, processes: int) -> list[int]:
    return [rank]


def _loop(rank: int, processes: int) -> list[int]:
    return [rank, rank + processes]


def _there_and_back(rank: int, processes: int) -> list[int]:
    return [rank, 2 * processes - 1 - rank]


SCHEDULES: Mapping[str, Callable[[int, int], list[int]]] = {
    "GPipe": _one,
    "1F1B": _one,
    "LoopedBFS": _loop,
    "Interleaved1F1B": _loop,
    "InterleavedZeroBubble": _loop,
    "ZBVZeroBubble": _there_and_back,
    "DualPipeV": _there_and_back,
}
"""torch's name of a schedule → (rank, number of processes) → stages of that process, counted from 0."""


class Pipeline:
    """A network trained end to end, in stages on several processes.

    Stages are runs of units; of all cuts, the one whose slowest stage is fastest. BatchNorm sees a micro-batch.

    Args:
        whole: the network as one block, whose loss is a mean over images.
        seconds: of each of its units, the classifier being the last.
        schedule: one of :data:`SCHEDULES`.
        micro_batches: that a batch is cut into.
        device: of this process.

    Raises:
        ValueError: torch's schedule does not take that many micro-batches, or there are more stages than units.
    """

    def __init__(
        self,
        whole: LocalClassification,
        seconds: Sequence[float],
        schedule: str,
        micro_batches: int,
        device: torch.device,
    ) -> None:
        processes, own = dist.get_world_size(), SCHEDULES[schedule](dist.get_rank(), dist.get_world_size())
        units, count = units_of(whole), processes * len(own)
        if count > len(units):
            raise ValueError(f"{len(units)} units make no {count} stages")
        stops = balanced_stops(len(units), count, lambda a, b: fsum(seconds[a:b]))
        starts = [0, *stops]
        parts = [Stage(*units[starts[number] : stops[number]]).to(device).train() for number in own]
        stages = [PipelineStage(part, number, count, device) for part, number in zip(parts, own, strict=True)]
        made = get_schedule_class(schedule)
        several: Any = stages if issubclass(made, PipelineScheduleMulti) else stages[0]
        self._schedule: Any = made(several, micro_batches, loss_fn=whole.prediction_loss)
        self._first, self._last = 0 in own, count - 1 in own
        self._optimizer = whole.make_optimizer([weight for part in parts for weight in part.parameters()])

    def step(self, batch: Batch) -> None:
        """Learn from a batch, which all processes have."""
        images = (as_rows(batch.images),) if self._first else ()
        labels = {"target": batch.labels} if self._last else {}
        self._schedule.step(*images, **labels, return_outputs=False)
        self._optimizer.step()
        self._optimizer.zero_grad()


def units_of(whole: LocalClassification) -> list[nn.Module]:
    """What stages of a network, trained as one block, are made of: its units and its classifier."""
    return [*whole.blocks[0].children(), *whole.heads]


def unit_seconds(whole: LocalClassification, images: Tensor) -> list[float]:
    """Seconds that each unit takes, forward and backward, on images of a micro-batch."""
    found: list[float] = []
    for unit in units_of(whole.to(images.device).train()):
        given = images.detach().requires_grad_(bool(found))
        through = partial(_through, unit, given)
        through()
        found.append(statistics.median(timed(through, given.device) for _ in range(_STEPS)))
        images = unit(given)
    whole.zero_grad()
    return found


def _through(unit: nn.Module, given: Tensor) -> None:
    unit(given).sum().backward()


class Stage(nn.Sequential):
    """Units between two processes: maps come and go with their channels last, ``(B, H, W, C)``, as gloo sends them."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
            if x.requires_grad:
                x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
        return as_rows(super().forward(x))


def as_rows(x: Tensor) -> Tensor:
    """Maps ``(B, C, H, W)`` in channels-last memory as ``(B, H, W, C)``, without a copy; vectors as they are."""
    return _Rows.apply(x) if x.dim() == 4 else x


class _Rows(Function):
    """No view of the maps, as zero-bubble schedules refuse views, but the same memory."""

    @staticmethod
    @override
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        rows = maps.detach().permute(0, 2, 3, 1).contiguous()
        return maps.new_empty(0).set_(rows)  # type: ignore[call-overload]  # torch's annotations do not know it

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.permute(0, 3, 1, 2)
