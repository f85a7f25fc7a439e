"""The face that every data set shows: loaders, held-out validation, augmentation on the device."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, Protocol, Self

import lightning.pytorch as L
import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.batch import Batch
from datamodules.epoch_batches import EpochBatches, SeededBatches, count_batches, mix
from datamodules.files import DataError
from datamodules.paired_images import BatchedPairs, PairedImages, normalised
from datamodules.views import Views


class Images(Protocol):
    """What a split of a data set must be able to do."""

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Self:
        """Only these images; nothing is copied."""

    def for_evaluation(self) -> Self:
        """The same images without the random changes that loading for training makes."""

    def picture(self, index: int) -> Image.Image:
        """One image, grey or RGB, as it is before anything random."""

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

    def picture(self, index: int) -> Image.Image:
        """One image, grey or RGB."""
        image = self._images[self._indices[index]].numpy()
        return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)

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


class ImageDataModule(L.LightningDataModule):
    """Base of all data sets: a subclass gives its constants and :meth:`load`.

    Validation is held out of the training split, stratified by class, the same images for every
    seed; the test split is not looked at before ``test``.

    Args:
        root: folder that holds the data.
        batch_size: images per batch.
        augment: random changes to training images; not used with ``views``.
        validation: share of the training split held out for validation, between 0 and 1.
        validate_on_test: train on the whole training split and validate on the test split, as some
            papers do; only to reproduce them.
        download: fetch the data set if it is not there.
        num_workers: processes that load batches. Data sets in memory need none.
        seed: seed of shuffling and augmentation; the command line links it to ``seed_everything``.
        views: show training images in pairs of random views, for self-supervised losses. These depend on
            the size of the batch, so a last, smaller one is left out then. Evaluation is not changed.

    Raises:
        DataError: a share of validation or batch size that is none, or views in batches of one.
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
        views: Views | None = None,
    ) -> None:
        super().__init__()
        if not 0 < validation < 1:
            raise DataError(
                f"validation is the share of the training split to hold out, between 0 and 1, not {validation}."
            )
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {batch_size}.")
        if views and batch_size < 2:
            raise DataError("Views are compared within a batch: batch_size must be at least 2 with views.")
        self.root, self.batch_size, self.augment = root, batch_size, augment
        self.validation, self.validate_on_test = validation, validate_on_test
        self.download, self.num_workers, self.seed = download, num_workers, seed
        self.views = views
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
        if stage == "fit" and self.views:
            self._check_views(self._splits["train"])

    def _check_views(self, split: Images) -> None:
        """Say before training, not in its middle, what views cannot be made of."""
        if len(split) < self.batch_size:
            raise DataError(
                f"{self.title} has {len(split)} training images, fewer than one batch of {self.batch_size}; "
                "with views only full batches are used: lower batch_size."
            )
        if self.views.batched and not isinstance(split, MemoryImages):
            raise DataError(
                f"The images of {self.title} are read from disk, each of its own size: set views.batched to false."
            )
        self.views.pair_transform(self._side)

    @property
    def _side(self) -> int:
        return self.image_shape[1]

    @cached_property
    def _batched_pairs(self) -> BatchedPairs:
        return BatchedPairs(self.views, self._side, self.mean, self.std)

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
        return self.training_loader(self._splits["train"], self._position, self.num_workers)

    def training_loader(
        self, images: Images, position: Callable[[], tuple[int, slice]], num_workers: int
    ) -> DataLoader:
        """Shuffled batches of any images, as in training.

        Args:
            images: what to load.
            position: tells the number of the epoch that begins, and which of its batches it still has.
            num_workers: processes that load batches.
        """
        sampler, generator = EpochBatches, torch.Generator()
        if self.views and not self.views.batched:
            images, sampler = PairedImages(images, self.views.pair_transform(self._side)), SeededBatches
        batches = sampler(len(images), self.batch_size, self.seed, position, generator, drop_last=bool(self.views))
        return self._loader(images, batches, generator, num_workers)

    def _position(self) -> tuple[int, slice]:
        # From the step count, which resumes exactly; trainer.current_epoch can be one too low then.
        batches = count_batches(len(self._splits["train"]), self.batch_size, drop_last=bool(self.views))
        limit = self.trainer.limit_train_batches
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
        return self._loader(
            split, BatchSampler(SequentialSampler(split), self.batch_size, drop_last=False), None, self.num_workers
        )

    def _loader(
        self, split: Images | PairedImages, batches: Sampler, generator: torch.Generator | None, num_workers: int
    ) -> DataLoader:
        return DataLoader(
            split,
            batch_sampler=batches,
            collate_fn=split.collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=generator,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment or make views (in training) and normalise on the device.

        Seeds torch with (seed, step) first: augmentation and dropout of a step are then the same
        after a resume, whatever was drawn before.
        """
        if not self.trainer.training:
            return Batch(normalise(batch.images, self.mean, self.std), batch.labels)
        torch.manual_seed(mix(self.seed, self.trainer.global_step))
        return self.training_batch(batch)

    def training_batch(self, batch: Batch) -> Batch:
        """What the training step gets of a batch from the training loader: augmented images, or views."""
        if not self.views:
            return Batch(self.augmented(batch.images), batch.labels)
        if self.views.batched:
            pairs = self._batched_pairs(batch.images)
        else:
            pairs = tuple(normalised(pair, self.mean, self.std) for pair in batch.views)
        return Batch(pairs[-1].a, batch.labels, pairs)

    def augmented(self, images: Tensor) -> Tensor:
        """uint8 ``(B, H, W, C)`` → augmented, normalised float32 ``(B, C, H, W)``."""
        images = normalise(augment_batch(images, self.augment), self.mean, self.std)
        return cutout(images, self.augment.cutout) if self.augment.cutout else images
