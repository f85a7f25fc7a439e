"""Which images a batch has: the order of an epoch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochBatches(Sampler[Tensor]):
    """Batches of indices in an order that is a function of (seed, epoch) and nothing else.

    Resuming therefore meets the same batches in the same order, also in the middle of an epoch. The
    generator, shared with the loader, is reseeded at each epoch, so that the workers' seeds are a
    function of (seed, epoch) too.

    Args:
        length: number of samples.
        batch_size: samples per batch.
        seed: seed of the run.
        position: tells the number of the epoch that begins, and which of its batches it still has.
        generator: random generator that the loader uses as well.
        drop_last: leave a last, smaller batch out; by default it is kept, unless it is a single image.
        process: (which, of how many) that train side by side: each takes its part of every batch, whose
            size is then ``batch_size`` times their number. Up to that many less one images are left out
            of a last batch, so that all parts have one size.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        position: Callable[[], tuple[int, slice]],
        generator: torch.Generator,
        drop_last: bool = False,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self._rank, self._processes = process
        self._length, self._seed = length, seed
        self._batch_size = batch_size * self._processes
        self._position, self._generator = position, generator
        self._count = count_batches(length, batch_size, drop_last, self._processes)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        epoch, left = self._position()
        self._generator.manual_seed(mix(self._seed, epoch))
        order = torch.randperm(self._length, generator=self._generator)
        batches = order[: self._length - self._length % self._processes].split(self._batch_size)
        return (batch[self._rank :: self._processes] for batch in batches[: self._count][left])


class SeededBatches(EpochBatches):
    """The same batches, each with a seed of its own: a function of (seed, epoch, place in the epoch).

    For data sets that draw random numbers while they load: what they draw then depends neither on
    the worker nor on where a run was resumed.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        epoch, left = self._position()
        first = epoch * len(self) + (left.start or 0)
        batches = enumerate(super().__iter__(), start=first)
        return ((indices, mix(self._seed, i * self._processes + self._rank)) for i, indices in batches)


def count_batches(length: int, batch_size: int, drop_last: bool, processes: int = 1) -> int:
    """Batches per epoch, with or without a last one that is not full.

    A last batch of a single image per process is left out in any case: BatchNorm has no statistics of it.
    """
    full, rest = divmod(length, batch_size * processes)
    smallest = 2 * processes if full else processes
    return full if drop_last or rest < smallest else full + 1


def mix(seed: int, count: int) -> int:
    """One seed out of (seed of the run, counter)."""
    return (seed * 1_000_003 + count) % 2**63
