"""The face that every data set shows: loaders, held-out validation, augmentation on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self

import lightning.pytorch as L
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.files import DataError


class Batch(NamedTuple):
    """Images and their labels.

    From a loader the images are uint8 ``(B, H, W, C)``; after the transfer to the device they are
    augmented, normalised float32 ``(B, C, H, W)`` in channels-last memory. Labels are int64 ``(B,)``.
    """

    images: Tensor
    labels: Tensor


class Images(Protocol):
    """What a split of a data set must be able to do."""

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Self:
        """Only these images; nothing is copied."""

    def for_evaluation(self) -> Self:
        """The same images without the random changes that loading for training makes."""

    def collate(self, samples: object) -> Batch:
        """What the data set returned for a list of indices, as a batch."""


class MemoryImages(Dataset):
    """Images held in memory as uint8; a batch is one gather.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        indices: which of them belong to this split; all by default.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        self._images, self._labels = images, labels
        self._indices = torch.arange(len(labels)) if indices is None else indices

    @property
    def labels(self) -> Tensor:
        """Labels of this split, int64 ``(N,)``."""
        return self._labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, indices: Tensor | Sequence[int]) -> Batch:
        chosen = self._indices[indices]
        return Batch(self._images.index_select(0, chosen), self._labels.index_select(0, chosen))

    def subset(self, indices: Tensor) -> "MemoryImages":
        """Only these images; nothing is copied."""
        return MemoryImages(self._images, self._labels, self._indices[indices])

    def for_evaluation(self) -> "MemoryImages":
        """The same: images in memory are augmented later."""
        return self

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """A batch comes out of :meth:`__getitems__` complete."""
        return batch


class EpochBatches(Sampler[Tensor]):
    """Batches of indices in an order that is a function of (seed, epoch) and nothing else.

    Resuming therefore meets the same batches in the same order, also in the middle of an epoch. The
    generator, shared with the loader, is reseeded at each epoch, so that the workers' seeds are a
    function of (seed, epoch) too.

    Args:
        length: number of samples.
        batch_size: samples per batch; a last, smaller batch is kept.
        seed: seed of the run.
        position: tells the number of the epoch that begins, and which of its batches it still has.
        generator: random generator that the loader uses as well.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        position: Callable[[], tuple[int, slice]],
        generator: torch.Generator,
    ) -> None:
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._position, self._generator = position, generator

    def __len__(self) -> int:
        return -(-self._length // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        epoch, left = self._position()
        self._generator.manual_seed(_mix(self._seed, epoch))
        batches = torch.randperm(self._length, generator=self._generator).split(self._batch_size)
        return iter(batches[left])


def _mix(seed: int, count: int) -> int:
    """One seed out of (seed of the run, counter)."""
    return (seed * 1_000_003 + count) % 2**63


class ImageDataModule(L.LightningDataModule):
    """Base of all data sets: a subclass gives its constants and :meth:`load`.

    Validation is held out of the training split, stratified by class, the same images for every
    seed; the test split is not looked at before ``test``.

    Args:
        root: folder that holds the data.
        batch_size: images per batch.
        augment: random changes to training images.
        validation: share of the training split held out for validation, between 0 and 1.
        validate_on_test: train on the whole training split and validate on the test split, as some
            papers do; only to reproduce them.
        download: fetch the data set if it is not there.
        num_workers: processes that load batches. Data sets in memory need none.
        seed: seed of shuffling and augmentation; the command line links it to ``seed_everything``.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    mean: ClassVar[Sequence[float]]
    std: ClassVar[Sequence[float]]

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        augment: Augment = Augment(),
        validation: float = 0.1,
        validate_on_test: bool = False,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < validation < 1:
            raise DataError(
                f"validation is the share of the training split to hold out, between 0 and 1, not {validation}."
            )
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {batch_size}.")
        self.root, self.batch_size, self.augment = root, batch_size, augment
        self.validation, self.validate_on_test = validation, validate_on_test
        self.download, self.num_workers, self.seed = download, num_workers, seed
        self._splits: dict[str, Images] = {}

    @property
    def title(self) -> str:
        """Name of the data set in tables and summaries."""
        return type(self).__name__

    def load(self, train: bool) -> Images:
        """Read the published training or test split.

        Raises:
            DataError: a file is missing or damaged.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement load(train).")

    def setup(self, stage: str) -> None:
        """Read what the stage (``fit``, ``validate``, ``test``, ``predict``) needs, once."""
        needs_test = stage in ("test", "predict") or self.validate_on_test
        if needs_test and "test" not in self._splits:
            self._splits["test"] = self.load(train=False)
        if stage in ("fit", "validate") and "train" not in self._splits:
            full = self.load(train=True)
            if self.validate_on_test:
                self._splits |= {"train": full, "val": self._splits["test"]}
            else:
                train, val = self._hold_out(full.labels)
                self._splits |= {"train": full.subset(train), "val": full.subset(val).for_evaluation()}

    def _hold_out(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            train, val = train_test_split(
                np.arange(len(labels)), test_size=self.validation, random_state=0, stratify=labels.numpy()
            )
        except ValueError as fault:
            raise DataError(
                f"Cannot hold {self.validation:g} of the {len(labels)} training images of {self.title} out for "
                f"validation: {fault}"
            ) from fault
        return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(val))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training split."""
        split, generator = self._splits["train"], torch.Generator()
        batches = EpochBatches(len(split), self.batch_size, self.seed, self._position, generator)
        return self._loader(split, batches, generator)

    def _position(self) -> tuple[int, slice]:
        # From the step count, which resumes exactly; trainer.current_epoch can be one too low then.
        batches, limit = -(-len(self._splits["train"]) // self.batch_size), self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        epoch, done = divmod(self.trainer.global_step, max(batches, 1))
        return epoch, slice(done, batches)

    def val_dataloader(self) -> DataLoader:
        """The held-out validation images in order."""
        return self._ordered("val")

    def test_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._ordered("test")

    def _ordered(self, name: str) -> DataLoader:
        split = self._splits[name]
        return self._loader(split, BatchSampler(SequentialSampler(split), self.batch_size, drop_last=False), None)

    def _loader(self, split: Images, batches: Sampler, generator: torch.Generator | None) -> DataLoader:
        return DataLoader(
            split,
            batch_sampler=batches,
            collate_fn=split.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=generator,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalise on the device.

        Seeds torch with (seed, step) first: augmentation and dropout of a step are then the same
        after a resume, whatever was drawn before.
        """
        if not self.trainer.training:
            return Batch(normalise(batch.images, self.mean, self.std), batch.labels)
        torch.manual_seed(_mix(self.seed, self.trainer.global_step))
        return Batch(self.augmented(batch.images), batch.labels)

    def augmented(self, images: Tensor) -> Tensor:
        """uint8 ``(B, H, W, C)`` → augmented, normalised float32 ``(B, C, H, W)``."""
        images = normalise(augment_batch(images, self.augment), self.mean, self.std)
        return cutout(images, self.augment.cutout) if self.augment.cutout else images
