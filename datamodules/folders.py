"""Images in class folders: a person's own, and ImageNet."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2
from typing_extensions import override

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.files import DataError, require_folder
from datamodules.imagenet32 import IMAGENET_MEAN, IMAGENET_STD
from datamodules.images import Images, Indices, MemoryImages, Transform


class StreamedImages(Images):
    """Images decoded from their files when asked for.

    Args:
        files: their paths as bytes ``(N,)``: see :func:`in_one_array`.
        labels: int64 ``(N,)``.
        transform: crops and resizes a decoded image to the size all share.
        evaluation_transform: the same without anything random.
    """

    def __init__(
        self, files: np.ndarray, labels: Tensor, transform: Transform, evaluation_transform: Transform
    ) -> None:
        self._files, self.labels = files, labels
        self._transform, self._evaluation_transform = transform, evaluation_transform

    def __getitems__(self, indices: Indices) -> Batch:
        images = np.stack([np.asarray(read_image(self.file(int(index)), self._transform)) for index in indices])
        return Batch(torch.from_numpy(images.reshape(*images.shape[:3], -1)), self.labels[indices])

    def file(self, index: int) -> str:
        """Path of one image."""
        return os.fsdecode(self._files[index])

    @override
    def picture(self, index: int) -> Image.Image:
        """One image in RGB, of its own size."""
        return read_image(self.file(index))

    @override
    def subset(self, indices: Indices) -> "StreamedImages":
        chosen = self._files[np.asarray(indices)], self.labels[indices]
        return StreamedImages(*chosen, self._transform, self._evaluation_transform)

    @override
    def for_evaluation(self) -> "StreamedImages":
        return StreamedImages(self._files, self.labels, self._evaluation_transform, self._evaluation_transform)

    def in_memory(self) -> MemoryImages:
        """Decode every image once and hold them all."""
        return MemoryImages(*self.__getitems__(torch.arange(len(self)))[:2])


def in_one_array(paths: Sequence[str]) -> np.ndarray:
    """Paths as bytes ``(N,)``, which loading workers share; of a list each would come to have a copy of its own.

    Python counts who refers to an object in the object: whoever looks at a million texts writes to all their pages.
    """
    return np.array([os.fsencode(path) for path in paths])


def read_image(path: str, transform: Transform = lambda image: image) -> Image.Image:
    """Read one image file in RGB.

    Raises:
        DataError: the file is no image, or truncated.
    """
    try:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError) as fault:
        raise DataError(f"The image file {path} is damaged ({fault}). Replace it or take it out.") from fault


class ImageFolder(ImageDataModule):
    """A person's own images: ``ROOT/train/<class>/*`` and ``ROOT/test/<class>/*``.

    The set is called like its folder. Images are resized (shorter side, then the centre) to one size, held in memory as
    uint8 if they fit, and read from disk batch by batch if not.

    Args:
        root: folder with ``train`` and ``test``, each with one folder per class.
        image_size: side of the square images, in pixels.
        memory_gib: hold a split in memory up to this size, in GiB.
        mean: mean of each colour channel, for images in 0 … 1.
        std: standard deviation of each colour channel.
        common: batch size, augmentation and what else every data set takes: see :class:`ImageDataModule`.

    Raises:
        DataError: a folder is missing, holds no class folders, or test classes differ from train's.
    """

    folders = ("train", "test")

    def __init__(
        self,
        root: str = "data",
        image_size: PositiveInt = 32,
        memory_gib: NonNegativeFloat = 4.0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        **common: Any,
    ) -> None:
        super().__init__(root=root, **common)
        side = int(image_size)  # the command line's PositiveInt is a class, which a checkpoint must not ask for
        self.image_shape = (3, side, side)
        self.memory_gib, self.mean, self.std = memory_gib, tuple(mean), tuple(std)
        self.name = Path(root).resolve().name

    @override
    def prepare_data(self) -> None:
        if self.download:
            raise DataError(
                f"The images of {self.root} cannot be fetched: put them there and leave --data.download false."
            )

    @cached_property
    @override
    def classes(self) -> list[str]:
        """Names of the class folders, sorted; a class's label is its place in this list."""
        folder = require_folder(Path(self.root) / self.folders[0], "training images, one folder per class")
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not names:
            raise DataError(
                f"The folder {folder} holds no class folders. Put each class's images into a folder of its own."
            )
        return names

    @property
    @override
    def num_classes(self) -> int:  # type: ignore[override]  # a number elsewhere, here counted in the folder
        """Number of class folders."""
        return len(self.classes)

    @override
    def load(self, train: bool) -> Images:
        """The images of the training or test folder."""
        folder = require_folder(Path(self.root) / self.folders[0 if train else 1], "images, one folder per class")
        labels = {name: label for label, name in enumerate(self.classes)}
        found = {entry.name for entry in folder.iterdir() if entry.is_dir()}
        if found != set(labels):
            odd = ", ".join(sorted(found ^ set(labels))[:5])
            raise DataError(
                f"The class folders of {folder} are not those of the training images; they differ in: {odd}."
            )
        try:
            samples = make_dataset(str(folder), labels, extensions=IMG_EXTENSIONS)
        except FileNotFoundError as fault:
            raise DataError(f"In {folder}: {fault}") from fault
        files, found_labels = zip(*samples, strict=True)
        decoding = self.transform(train), self.transform(False)
        images = StreamedImages(in_one_array(files), torch.tensor(found_labels), *decoding)
        gib = len(images) * np.prod(self.image_shape) / 2**30
        return images.in_memory() if gib <= self.memory_gib else images


class ImageNet(ImageFolder):
    """ImageNet (ILSVRC 2012) in class folders: ``ROOT/train/<wnid>/*`` and ``ROOT/val/<wnid>/*``.

    Images are read from disk: training images as a random resized crop (Szegedy et al., 2015), the
    others resized to 256/224 of the size and cropped at the centre. The published validation images
    are the test split; ``validation`` is held out of the training images.

    Args:
        root: folder with ``train`` and ``val``.
        augment: random changes to training images besides the crop.
        common: what else every data set takes: see :class:`ImageDataModule`.
    """

    folders = ("train", "val")
    num_classes = 1000

    def __init__(
        self,
        root: str = "data/imagenet",
        image_size: PositiveInt = 224,
        batch_size: PositiveInt = 256,
        augment: Augment = Augment(flip=True),
        validation: float = 0.02,
        num_workers: NonNegativeInt = 8,
        **common: Any,
    ) -> None:
        super().__init__(
            root=root,
            image_size=image_size,
            batch_size=batch_size,
            augment=augment,
            validation=validation,
            num_workers=num_workers,
            memory_gib=0,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            **common,
        )
        self.name = "ImageNet"

    @override
    def transform(self, train: bool) -> Transform:
        """Random resized crop for training; resize and centre crop otherwise."""
        size = self.image_shape[1]
        if train:
            return v2.RandomResizedCrop(size)
        return v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])

    @override
    def load(self, train: bool) -> Images:
        """The images of the training or test folder, if there are 1000 classes."""
        if len(self.classes) != self.num_classes:
            raise DataError(
                f"{self.root} holds {len(self.classes)} classes; ImageNet has {self.num_classes}. "
                "For a part of it use datamodules.ImageFolder."
            )
        return super().load(train)
