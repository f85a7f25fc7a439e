"""Which images a batch has, and the loaders of batches."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from typing_extensions import override

from datamodules.batch import Batch
from datamodules.epochs import Epochs
from datamodules.files import DataError
from datamodules.images import Images


class EpochBatches(Sampler[Any]):
    """Batches of indices in an order that is a function of (seed, epoch) and nothing else.

    Resuming therefore meets the same batches in the same order, also in the middle of an epoch. Of several processes
    each takes its part of every batch, whose size is then ``batch_size`` times their number; up to that many less one
    images are left out of a last batch, so that all parts have one size.

    Args:
        epochs: tells the epoch whenever one begins.
        seed: seed of the run.

    Attributes:
        generator: for the loader too. It is seeded anew at each epoch: then the workers' seeds follow from (seed,
            epoch) as well.
    """

    def __init__(self, epochs: Epochs, seed: int) -> None:
        self._epochs, self._seed, self._count = epochs, seed, epochs.now().batches
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        epoch, (rank, processes) = self._epochs.now(), self._epochs.process
        self.generator.manual_seed(mix(self._seed, epoch.number))
        order = torch.randperm(epoch.images, generator=self.generator)
        batches = order[: epoch.images - epoch.images % processes].split(epoch.batch_size * processes)
        return (batch[rank::processes] for batch in batches[: epoch.batches][epoch.left])


class SeededBatches(EpochBatches):
    """The same batches, each with a seed of its own: a function of (seed, epoch, place in the epoch, process).

    For :class:`DrawingImages`: what they draw then depends neither on the worker nor on where a run was resumed.
    """

    @override
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        epoch, (rank, processes) = self._epochs.now(), self._epochs.process
        places = range(epoch.batches)[epoch.left]
        seeds = (mix(self._seed, (epoch.number * epoch.batches + i) * processes + rank) for i in places)
        return zip(super().__iter__(), seeds, strict=True)


class DrawingImages(Dataset[Batch]):
    """Images that draw random numbers while they are loaded; what a batch draws follows from its seed.

    Args:
        images: give a whole batch at once.
    """

    def __init__(self, images: Dataset[Batch]) -> None:
        self._images = images

    def __getitems__(self, seeded: tuple[Tensor, int]) -> Batch:
        """The batch with these indices, and this seed."""
        indices, seed = seeded
        with isolate_rng(include_cuda=False):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # lightly's blur and solarization
            random.seed(seed)
            return self._images.__getitems__(indices)  # type: ignore[attr-defined]  # torch asks for it by its name


def loader(
    images: Dataset[Batch],
    batches: Iterable[Any],
    num_workers: int = 0,
    generator: torch.Generator | None = None,
    persistent: bool = False,
) -> DataLoader[Batch]:
    """Batches of images that give a whole batch at once.

    Args:
        images: a split.
        batches: what to ask it for.
        num_workers: processes that load; 0 for this one.
        generator: for the seeds of the workers.
        persistent: keep the workers from one epoch to the next. Their random numbers go on then.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=_whole,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=generator,
        persistent_workers=persistent and num_workers > 0,
    )


def _whole(batch: Any) -> Any:
    """Nothing is left to collate."""
    return batch


def in_order(
    images: Images, batch_size: int, num_workers: int = 0, process: tuple[int, int] = (0, 1)
) -> DataLoader[Batch]:
    """Batches of a split, or of the share of a process (which, of how many), in its order; the last may be smaller."""
    return loader(images, shares(len(images), batch_size, process), num_workers, persistent=True)


def whole(images: Images, batch_size: int, num_workers: int = 0) -> DataLoader[Batch]:
    """All batches of a split in its order, by torch's own sampler: of others Lightning's ``predict`` warns."""
    return loader(images, BatchSampler(range(len(images)), batch_size, drop_last=False), num_workers)


def shares(images: int, batch_size: int, process: tuple[int, int]) -> list[Tensor]:
    """Batches of every n-th image, beginning with that of this process: all processes together meet each image once.

    All have the same number of batches, as DDP may exchange BatchNorm's statistics before one, in evaluation too. So
    a last batch too small for all processes joins the one before, which may have one image more than ``batch_size``.

    Raises:
        DataError: there are fewer images than processes.
    """
    rank, processes = process
    if images < processes:
        raise DataError(
            f"{processes} processes cannot share {images} images: set --trainer.devices to at most {images}."
        )
    starts = range(0, images - processes + 1, batch_size * processes)  # of batches that have an image for everyone
    batches = torch.arange(images).tensor_split(tuple(starts[1:]))
    return [batch[rank::processes] for batch in batches]


def mix(seed: int, count: int) -> int:
    """One seed out of (seed of the run, counter)."""
    return (seed * 1_000_003 + count) % 2**63
