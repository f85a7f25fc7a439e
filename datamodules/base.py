"""The face that every data set shows: loaders, held-out validation, augmentation on the device."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.batch import Batch, Selection
from datamodules.epochs import EpochBatches, SeededBatches, count_batches, mix
from datamodules.files import DataError
from datamodules.images import Images, MemoryImages, TrainingImages
from datamodules.views.pairs import BatchedPairs, PairedImages, normalised
from datamodules.views.transforms import Views


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
        batch_sizes: epoch → images per batch of training from that epoch (counted from 0) on, for blocks
            trained one after the other: what one block saves in memory can be spent on larger batches.

    With several processes ``batch_size`` is that of each, and all evaluate the whole split.

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
        batch_sizes: Mapping[int, int] = {},
    ) -> None:
        super().__init__()
        if not 0 < validation < 1:
            raise DataError(
                f"validation is the share of the training split to hold out, between 0 and 1, not {validation}."
            )
        if (smallest := min([batch_size, *batch_sizes.values()])) < 1:
            raise DataError(f"A batch has at least 1 image, not {smallest}: change batch_size or batch_sizes.")
        if any(epoch < 0 for epoch in batch_sizes):
            raise DataError(f"batch_sizes counts epochs from 0; there is no epoch {min(batch_sizes)}.")
        if views and smallest < 2:
            raise DataError("Views are compared within a batch: batch_size must be at least 2 with views.")
        self.root, self.batch_size, self.augment = root, batch_size, augment
        self.validation, self.validate_on_test = validation, validate_on_test
        self.download, self.num_workers, self.seed = download, num_workers, seed
        self.views, self.batch_sizes = views, batch_sizes
        self._splits: dict[str, Images] = {}
        self._begun = (0, 0)
        self._selection: Selection | None = None

    @property
    def name(self) -> str:
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
        if stage == "fit":
            self._begun, self._selection = (0, 0), None
            if self.batch_sizes:
                self.reload_every_epoch()
            if self.views:
                self._check_views(self._splits["train"])

    def _check_views(self, split: Images) -> None:
        """Say before training, not in its middle, what views cannot be made of."""
        if len(split) < self.batch_size:
            raise DataError(
                f"{self.name} has {len(split)} training images, fewer than one batch of {self.batch_size}; "
                "with views only full batches are used: lower batch_size."
            )
        if self.views.batched and not isinstance(split, MemoryImages):
            raise DataError(
                f"The images of {self.name} are read from disk, each of its own size: set views.batched to false."
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
                f"Cannot hold {self.validation:g} of the {len(labels)} training images of {self.name} out for "
                f"validation: {fault}"
            ) from fault
        return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(val))

    @property
    def training_images(self) -> Images:
        """The training split, without what is held out."""
        return self._splits["train"]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training split, or of what is selected of it."""
        epoch, _ = self._position()
        return self.training_loader(
            self.training_images, self._position, self.num_workers, self._batch_size(epoch), self._selection
        )

    def training_loader(
        self,
        images: Images,
        position: Callable[[], tuple[int, slice]],
        num_workers: int,
        batch_size: int | None = None,
        selection: Selection | None = None,
    ) -> DataLoader:
        """Shuffled batches of any images, as in training.

        Args:
            images: what to load.
            position: tells the number of the epoch that begins, and which of its batches it still has.
            num_workers: processes that load batches.
            batch_size: images per batch; by default the data module's.
            selection: which of the images; all by default.
        """
        if self.views and not self.views.batched:
            images, sampler = PairedImages(images, self.views.pair_transform(self._side)), SeededBatches
        else:
            images, sampler = TrainingImages(images, selection), EpochBatches
        generator, size = torch.Generator(), batch_size or self.batch_size
        batches = sampler(len(images), size, self.seed, position, generator, bool(self.views), self._process)
        return self._loader(images, batches, generator, num_workers)

    def training_pass(self, number: int | None, device: torch.device) -> Iterator[Batch]:
        """All training images once, in order; torch is seeded for every batch.

        Args:
            number: augmented, what is drawn being a function of (seed, number); None: as in evaluation.
            device: where to.
        """
        images = self.training_images if number is not None else self.training_images.for_evaluation()
        seed = mix(self.seed, number or 0)
        split, generator = TrainingImages(images), torch.Generator().manual_seed(seed)
        order = torch.arange(len(split)).split(self.batch_size)
        torch.manual_seed(seed)
        for count, batch in enumerate(self._loader(split, order, generator, self.num_workers)):
            torch.manual_seed(mix(seed, count))
            batch = move_data_to_device(batch, device)
            yield self.evaluation_batch(batch) if number is None else self.training_batch(batch)

    # -- epochs: where a run stands, and which images and batches the next one has --------------------

    def select(self, selection: Selection | None) -> None:
        """Train on these images only from the epoch that begins next; to be called at the end of an epoch.

        The selection is kept in checkpoints. Call :meth:`reload_every_epoch` once before training.
        """
        epoch, _ = self._begun
        self._begun, self._selection = (epoch + 1, self.trainer.global_step), selection

    def reload_every_epoch(self) -> None:
        """Have Lightning ask for the training batches anew before every epoch: their number will change."""
        self.trainer.reload_dataloaders_every_n_epochs = 1

    @property
    def _process(self) -> tuple[int, int]:
        """Which process this is, of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self) -> tuple[int, slice]:
        # From the step count, which resumes exactly; trainer.current_epoch can be one too low then.
        epoch, first = self._begun
        while self.trainer.global_step >= first + (batches := self._count_batches(epoch)):
            epoch, first = epoch + 1, first + batches
        self._begun = epoch, first
        return epoch, slice(self.trainer.global_step - first, batches)

    def _count_batches(self, epoch: int) -> int:
        _, processes = self._process
        images = len(self._selection.indices if self._selection else self.training_images)
        batches = count_batches(images, self._batch_size(epoch), bool(self.views), processes)
        limit = self.trainer.limit_train_batches
        return max(min(batches, limit) if isinstance(limit, int) else int(batches * limit), 1)

    def _batch_size(self, epoch: int) -> int:
        begun = [first for first in self.batch_sizes if first <= epoch]
        return self.batch_sizes[max(begun)] if begun else self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Epoch, the step it began at and its selection: epochs of different lengths resume exactly."""
        return {"begun": self._begun, "selection": self._selection and tuple(self._selection)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stood."""
        self._begun = tuple(state_dict["begun"])
        self._selection = state_dict["selection"] and Selection(*state_dict["selection"])

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
        self, split: Images | PairedImages, batches: Iterable[Any], generator: torch.Generator | None, num_workers: int
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
            return self.evaluation_batch(batch)
        rank, processes = self._process
        torch.manual_seed(mix(self.seed, self.trainer.global_step * processes + rank))
        return self.training_batch(batch)

    def evaluation_batch(self, batch: Batch) -> Batch:
        """What evaluation gets of a batch: normalised images."""
        return batch._replace(images=self.normalised(batch.images))

    def training_batch(self, batch: Batch) -> Batch:
        """What the training step gets of a batch from the training loader: augmented images, or views."""
        if not self.views:
            return batch._replace(images=self.augmented(batch.images))
        if self.views.batched:
            pairs = self._batched_pairs(batch.images)
        else:
            pairs = tuple(normalised(pair, self.mean, self.std) for pair in batch.views)
        return batch._replace(images=pairs[-1].a, views=pairs)

    def augmented(self, images: Tensor) -> Tensor:
        """uint8 ``(B, H, W, C)`` → augmented, normalised float32 ``(B, C, H, W)``."""
        images = self.normalised(augment_batch(images, self.augment))
        return cutout(images, self.augment.cutout) if self.augment.cutout else images

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 ``(B, H, W, C)`` → normalised float32 ``(B, C, H, W)``."""
        return normalise(images, self.mean, self.std)
