"""Images in class folders: a person's own, and ImageNet."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2
from typing_extensions import override

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.files import DataError, require_folder
from datamodules.imagenet32 import IMAGENET_MEAN, IMAGENET_STD
from datamodules.images import Images, Indices, MemoryImages

Transform = Callable[[Image.Image], Image.Image]


class StreamedImages(Images):
    """Images decoded from their files when asked for.

    Args:
        samples: (file, label) of each image.
        transform: crops and resizes a decoded image to the size all share.
        evaluation_transform: the same without anything random.
    """

    def __init__(
        self, samples: Sequence[tuple[str, int]], transform: Transform, evaluation_transform: Transform
    ) -> None:
        self._samples, self._transform, self._evaluation_transform = samples, transform, evaluation_transform
        self.labels = torch.tensor([label for _, label in samples])

    def __getitems__(self, indices: Indices) -> Batch:
        images = [np.array(read_image(self._samples[int(index)][0], self._transform)) for index in indices]
        return Batch(torch.from_numpy(np.stack(images)), self.labels[indices])

    @override
    def picture(self, index: int) -> Image.Image:
        """One image in RGB, of its own size."""
        return read_image(self._samples[index][0])

    @override
    def subset(self, indices: Indices) -> "StreamedImages":
        chosen = [self._samples[int(index)] for index in indices]
        return StreamedImages(chosen, self._transform, self._evaluation_transform)

    @override
    def for_evaluation(self) -> "StreamedImages":
        return StreamedImages(self._samples, self._evaluation_transform, self._evaluation_transform)

    def in_memory(self) -> MemoryImages:
        """Decode every image once and hold them all."""
        return MemoryImages(*self.__getitems__(torch.arange(len(self)))[:2])


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
        self.image_shape = (3, image_size, image_size)
        self.memory_gib, self.mean, self.std = memory_gib, tuple(mean), tuple(std)
        self.name = Path(root).resolve().name

    @override
    def prepare_data(self) -> None:
        if self.download:
            raise DataError(
                f"The images of {self.root} cannot be fetched: put them there and leave --data.download false."
            )

    @property
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

    def transform(self, train: bool) -> Transform:
        """How a decoded image becomes one of the shared size."""
        side = self.image_shape[1]
        return partial(ImageOps.fit, size=(side, side), method=Image.Resampling.BILINEAR)

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
        images = StreamedImages(samples, self.transform(train), self.transform(False))
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
