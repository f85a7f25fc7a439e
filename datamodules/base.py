"""The face that every data set shows: loaders, held-out validation, augmentation on the device."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from inspect import getattr_static
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.batch import Batch, Selection
from datamodules.epochs import Epochs
from datamodules.files import DataError, note, require
from datamodules.images import Fitted, Images, MemoryImages, TrainingImages, Transform
from datamodules.loaders import DrawingImages, EpochBatches, SeededBatches, in_order, loader, mix, whole
from datamodules.views.pairs import DevicePairs, PairedImages
from datamodules.views.transforms import Views
from ranges import NonNegativeInt, PositiveFloat, PositiveInt, Share

MOST_WORKERS = max(16, 8 * (os.cpu_count() or 1))
"""Processes that load batches: more are a slip of the finger, and would take the machine down."""


class ImageDataModule(L.LightningDataModule):
    """Base of all data sets: a subclass gives its constants and :meth:`load`.

    Validation is held out of the training split, stratified by class, the same images for every
    seed; the test split is not used before ``test``. What :meth:`load` gives is compared with the constants.

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
        checksums: compare data files with their published checksums; false: for files that were packed anew.
        mean: what is taken off each channel, for images in 0 … 1; by default the data set's own mean.
        std: what each channel is then divided by; by default the data set's own standard deviation.
        labels: train on so many images only, drawn class by class with the seed. Methods that learn from few labels
            train on all others, too, without theirs; by default all labels are known.
        labelled_batch_size: images per batch of those with labels, if there are few; by default ``batch_size``.

    With several processes ``batch_size`` is that of each. Each validates and tests on its own share of the images, and
    all predict the whole split.

    Attributes:
        name: of the data set in tables and summaries.
        num_classes: number of classes.
        image_shape: ``(C, H, W)``.
        mean: what is taken off each channel, for images in 0 … 1.
        std: what each channel is then divided by.
        dtype: of the images of a split.
        epochs: where the run stands.

    Raises:
        DataError: a share of validation or batch size that is none, views in batches of one, or too many workers.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype = torch.uint8

    def __init__(
        self,
        root: str = "data",
        batch_size: PositiveInt = 128,
        augment: Augment = Augment(),
        validation: Share = 0.1,
        validate_on_test: bool = False,
        download: bool = False,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        views: Views | None = None,
        batch_sizes: Mapping[NonNegativeInt, PositiveInt] = {},
        checksums: bool = True,
        mean: list[Share] | None = None,
        std: list[PositiveFloat] | None = None,
        labels: PositiveInt | None = None,
        labelled_batch_size: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if not 0 < validation < 1:
            raise DataError(
                f"validation is the share of the training split to hold out, between 0 and 1, not {validation}."
            )
        if (smallest := min([batch_size, *batch_sizes.values()])) < 1:
            raise DataError(f"A batch has at least 1 image, not {smallest}: change batch_size or batch_sizes.")
        if num_workers > MOST_WORKERS:
            raise DataError(
                f"num_workers starts that many processes: at most {MOST_WORKERS} on this machine, not {num_workers}."
            )
        if wrong := [epoch for epoch in batch_sizes if not str(epoch).isdecimal()]:  # jsonargparse reads no keys
            raise DataError(f"batch_sizes counts epochs from 0; there is no epoch {wrong[0]}.")
        if views and smallest < 2:
            raise DataError("Views are compared within a batch: batch_size must be at least 2 with views.")
        self.name = type(self).__name__
        self.root, self.batch_size, self.augment = root, batch_size, augment
        self.validation, self.validate_on_test = validation, validate_on_test
        self.download, self.num_workers, self.seed = download, num_workers, seed
        self.views, self.checksums = views, checksums
        self.batch_sizes = {int(epoch): images for epoch, images in batch_sizes.items()}
        self.labels, self.labelled_batch_size = labels, labelled_batch_size
        if mean is not None:
            self.mean = tuple(mean)
        if std is not None:
            self.std = tuple(std)
        self.epochs = Epochs()
        self._pass = 0  # through the training images, counted from 0: what alternates goes by it
        self._splits: dict[str, Images] = {}

    def require_constants(self) -> None:
        """See that the class says what its images are.

        Raises:
            DataError: something is missing, or does not go together.
        """
        wanted = ("num_classes", "image_shape", "mean", "std")
        if missing := [name for name in wanted if getattr_static(self, name, None) is None]:  # classes are not counted
            raise DataError(f"{type(self).__name__} must say its {', '.join(missing)}.")
        if np.shape(self.image_shape) != (3,):
            raise DataError(f"image_shape is (channels, height, width) of the images, not {self.image_shape}.")
        channels = self.image_shape[:1]
        if not np.shape(self.mean) == np.shape(self.std) == channels or not all(0 < s < math.inf for s in self.std):
            raise DataError(
                f"mean and std are one number per channel, those of std above 0, not {self.mean} and {self.std}; "
                f"image_shape, (channels, height, width), is {tuple(self.image_shape)}."
            )

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of their labels; numbers where the data set has no names."""
        return [str(label) for label in range(self.num_classes)]

    def transform(self, train: bool) -> Transform:
        """How a decoded image becomes one of this size: its shorter side fits, and the centre is cut out."""
        return Fitted(self.image_shape)

    def load(self, train: bool) -> Images:
        """Read the published training or test split.

        Raises:
            DataError: a file is missing or damaged.
        """
        raise DataError(f"{type(self).__name__} must have a method load(self, train), which reads a split.")

    @override
    def setup(self, stage: str) -> None:
        """Read what the stage (``fit``, ``validate``, ``test``, ``predict``) needs, once; ``fit`` begins anew."""
        needs_test = stage in ("test", "predict") or self.validate_on_test
        if needs_test and "test" not in self._splits:
            self._splits["test"] = self._read("test")
        if stage in ("fit", "validate") and "train" not in self._splits:
            self._splits["known"] = full = self._read("training")
            if self.validate_on_test:
                self._splits |= {"train": full, "val": self._splits["test"]}
            else:
                train, val = full.hold_out(self.validation, f"training images of {self.name}")
                self._splits |= {"train": train, "val": val.for_evaluation()}
        if stage == "fit":
            self.epochs = self.epochs_of(self.training_images)
            if self.labels:
                self.epochs.selection = self._some(labelled=True)
            if self.batch_sizes:
                self.reload_every_epoch()
            if self.views:
                if self.image_shape[1] != self.image_shape[2]:
                    raise DataError(f"Views are square, and the images of {self.name} are not: give them one side.")
                self.views.require_for(self.training_images, self.image_shape[1], self.batch_size, self.name)

    def _read(self, split: str) -> Images:
        """The ``training`` or ``test`` split, if it is as promised."""
        if not self.checksums:
            self.note(
                f"the files of {self.name} in {self.root} are not compared with the published checksums; "
                "counts, shapes and labels are checked, pixels are not."
            )
        images = self.load(train=split == "training")
        return self.checked(images, f"The {split} split of {self.name}")

    def checked(self, images: Images, where: str) -> Images:
        """Images, if they are what the data set promises; where they are begins the message.

        Raises:
            DataError: they are not.
        """
        if not isinstance(images, Images):
            raise DataError(
                f"{where} is of type {type(images).__name__}: load must return images, as MemoryImages(images, labels)."
            )
        images.require(self.image_shape, self.num_classes, self.dtype, where)
        return images

    def published(self, path: Path, md5: str) -> Path:
        """The path of a data file that is there and, unless ``checksums`` is off, unaltered.

        Raises:
            DataError: it is not.
        """
        anew = "; if it was packed anew on purpose, set --data.checksums false"
        return require(path, md5 if self.checksums else None, otherwise=anew)

    def note(self, message: str) -> None:
        """Say once, by the first of several processes, what a person should know."""
        if self._process[0] == 0:
            note(message)

    # -- loaders --------------------------------------------------------------------------------------

    @property
    def training_images(self) -> Images:
        """The training split, without what is held out."""
        return self._splits["train"]

    @property
    def known_images(self) -> Images:
        """The published training split, with what is held out of it."""
        return self._splits["known"]

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training split, or of what is selected of it."""
        self.epochs.step = self._step
        return self.training_loader(self.training_images, self.epochs, self.num_workers)

    def training_loader(self, images: Images, epochs: Epochs, num_workers: int) -> DataLoader[Batch]:
        """Shuffled batches of any images, as in training; ``epochs`` tells of which, and of what size."""
        source: Dataset[Batch] = TrainingImages(images, epochs.selection)
        batches = EpochBatches(epochs, self.seed)
        if self.views and self.views.made_while_loading(images):
            source = PairedImages(images, self.views.while_loading(self.image_shape[1]))
        if isinstance(source, PairedImages) or not isinstance(images, MemoryImages):
            source, batches = DrawingImages(source), SeededBatches(epochs, self.seed)
        return loader(source, batches, num_workers, batches.generator, persistent=True)

    def training_pass(self, number: int | None, device: torch.device) -> Iterator[Batch]:
        """All training images once, in order; torch is seeded for every batch.

        Args:
            number: augmented, what is drawn being a function of (seed, number); None: as in evaluation.
            device: where to.
        """
        images = self.training_images if number is not None else self.training_images.for_evaluation()
        seed = mix(self.seed, number or 0)
        order = torch.arange(len(images)).split(self.batch_size)
        batches = loader(TrainingImages(images), order, self.num_workers, torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        for count, batch in enumerate(batches):
            torch.manual_seed(mix(seed, count))
            self._pass = number or 0
            batch = move_data_to_device(batch, device)
            yield self.evaluation_batch(batch) if number is None else self.training_batch(batch)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out validation images in order; of several processes each has its share."""
        return in_order(self._splits["val"], self.batch_size, self.num_workers, self._process)

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in order; of several processes each has its share."""
        return in_order(self._splits["test"], self.batch_size, self.num_workers, self._process)

    @override
    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test split in order, whole on every process: one of them writes the predictions."""
        return whole(self._splits["test"], self.batch_size, self.num_workers)

    @property
    def predicted(self) -> dict[str, Sequence[Any]]:
        """What is known of the predicted images: heading → an entry for each, their class as ``label``."""
        images = self._splits["test"]
        return {"index": range(len(images)), "label": [self.classes[label] for label in images.labels.tolist()]}

    # -- where a run stands ---------------------------------------------------------------------------

    def epochs_of(self, images: Images) -> Epochs:
        """The epochs of a training on these images."""
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        return Epochs(len(images), self.batch_size, self.batch_sizes, bool(self.views), self.replica, limit)

    def select(self, selection: Selection | None) -> None:
        """Train on these images only from the epoch that begins next; to be called at the end of an epoch.

        The selection is kept in checkpoints. Call :meth:`reload_every_epoch` once before training.
        """
        self.epochs.step = self._step
        self.epochs.select(selection)

    def select_labelled(self, labelled: bool) -> None:
        """Train on the ``labels`` images with labels, or on all others without theirs, as by :meth:`select`.

        Raises:
            DataError: all labels are known.
        """
        if not self.labels:
            raise DataError(
                "This method learns from some images with labels and from all others without: say how many have "
                "labels, for example --data.labels 600."
            )
        self.select(self._some(labelled))

    def _some(self, labelled: bool) -> Selection:
        assert self.labels
        drawn = self.training_images.some_of_each_class(self.labels, self.seed)
        chosen = torch.zeros(len(self.training_images), dtype=torch.bool)
        chosen[drawn] = True
        places = (chosen if labelled else ~chosen).nonzero().squeeze(1)
        return Selection(places, torch.ones(len(chosen)), labelled, self.labelled_batch_size if labelled else None)

    def reload_every_epoch(self) -> None:
        """Have Lightning ask for the training batches anew before every epoch: their number will change."""
        assert self.trainer
        self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]  # set outside of its class

    @property
    def _step(self) -> int:
        """Number of training steps that are done."""
        return self.trainer.global_step if self.trainer else 0

    @property
    def _process(self) -> tuple[int, int]:
        """Which process this is, of how many: they share out what is evaluated."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def replica(self) -> tuple[int, int]:
        """Which process this is of how many that share a batch in training, each with a part of its images."""
        shared = getattr(self.trainer and self.trainer.strategy, "distributed_sampler_kwargs", None)
        return (shared["rank"], shared["num_replicas"]) if shared else (0, 1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.epochs.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs.load_state_dict(state_dict)

    # -- on the device --------------------------------------------------------------------------------

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment or make views (in training) and normalise on the device.

        Seeds torch with (seed, step) first: augmentation and dropout of a step are then the same
        after a resume, whatever was drawn before.
        """
        if not (self.trainer and self.trainer.training):
            return self.evaluation_batch(batch)
        rank, processes = self.replica
        torch.manual_seed(mix(self.seed, self._step * processes + rank))
        self.epochs.step = self._step
        self._pass = self.epochs.now().number
        self.epochs.step = self._step + 1  # the next epoch is asked for before any hook of ours could tell
        return self.training_batch(batch)

    def evaluation_batch(self, batch: Batch) -> Batch:
        """What evaluation gets of a batch: normalised images."""
        return batch._replace(images=self.normalised(batch.images))

    def training_batch(self, batch: Batch) -> Batch:
        """What the training step gets of a batch from the training loader: augmented images, or views."""
        if not self.views:
            mirrored = None
            if self.augment.flip == "alternate" and batch.indices is not None:  # else it is no training image
                first = self._mirrored_first[batch.indices.cpu() % len(self._mirrored_first)]
                mirrored = (first ^ bool(self._pass % 2)).to(batch.images.device)
            images = self.normalised(augment_batch(batch.images, self.augment, mirrored))
            return batch._replace(images=cutout(images, self.augment.cutout))
        pairs = self._device_pairs(batch.images)
        return batch._replace(images=pairs[-1].a, views=pairs)

    @cached_property
    def _mirrored_first(self) -> Tensor:
        """Which images are mirrored in the first epoch, and all that follow by twos; their places modulo its length."""
        return torch.rand(2**20, generator=torch.Generator().manual_seed(self.seed)) < 0.5

    @cached_property
    def _device_pairs(self) -> DevicePairs:
        assert self.views
        return DevicePairs(self.views, self.image_shape[1], self.mean, self.std)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 ``(B, H, W, C)`` → normalised float32 ``(B, C, H, W)``."""
        return normalise(images, self.mean, self.std)
