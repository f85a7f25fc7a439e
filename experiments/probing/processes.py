"""Batches that several processes share out, for what looks at networks and trains none."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import lightning.pytorch as L
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from datamodules.base import ImageDataModule
from losses.processes import process_count

Asked = TypeVar("Asked")
Made = TypeVar("Made")


def in_all(trainer: L.Trainer, data: ImageDataModule, work: Callable[[], None]) -> None:
    """Call something in all processes of a Trainer, which Lightning starts if nobody else has."""
    strategy, data.trainer = trainer.strategy, trainer

    def meet() -> None:
        strategy.setup_environment()
        if trainer.local_rank == 0:
            data.prepare_data()
        strategy.barrier()
        work()

    if strategy.launcher:
        strategy.launcher.launch(meet)
    else:
        work()


def own(batches: Sequence[Asked]) -> Sequence[Asked]:
    """The part of this process: of n processes each has every n-th batch."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return batches[rank :: process_count()]


def shared(batches: Sequence[Asked], work: Callable[[Sequence[Asked]], Iterable[Made]]) -> Iterator[Made]:
    """What is made of each batch, in their order: every process makes a part of it, and all get all.

    Args:
        batches: the same in all processes.
        work: makes something of each of the batches that it is given: a process's :func:`own`.
    """
    if (count := process_count()) == 1:
        yield from work(batches)
        return
    made = iter(work(own(batches)))
    for start in range(0, len(batches), count):
        found: list[Made] = [None] * count  # type: ignore[list-item]
        dist.all_gather_object(found, tree_map_only(Tensor, Tensor.cpu, next(made, None)))
        yield from found[: len(batches) - start]


def goes_on_alone() -> bool:
    """Whether this process ends the work, which is the first one; nothing is shared any more."""
    if not dist.is_initialized():
        return True
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    return first
