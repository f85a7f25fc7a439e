"""Images in class folders: a person's own, and ImageNet."""

import contextlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2
from typing_extensions import override

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.decoded import gathered, kept, name_of, shown
from datamodules.files import DataError, note, require_folder
from datamodules.imagenet32 import IMAGENET_MEAN, IMAGENET_STD
from datamodules.images import Fitted, Images, Indices, MemoryImages, Transform
from datamodules.loaders import loader
from ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share

_DECODED_AT_A_TIME = 64


class StreamedImages(Images):
    """Images decoded from their files when asked for.

    Args:
        files: their paths as bytes ``(N,)``: see :func:`in_one_array`.
        labels: int64 ``(N,)``.
        transform: crops and resizes a decoded image to the size all share.
        evaluation_transform: the same without anything random.
        skip_damaged: name a file that cannot be read and show another image of its class instead.
    """

    def __init__(
        self,
        files: np.ndarray,
        labels: Tensor,
        transform: Transform,
        evaluation_transform: Transform,
        skip_damaged: bool = False,
    ) -> None:
        self._files, self.labels = files, labels
        self._transform, self._evaluation_transform = transform, evaluation_transform
        self._skip_damaged = skip_damaged

    def __getitems__(self, indices: Indices) -> Batch:
        enough = _enough(self._transform)
        images = np.stack([np.asarray(self._transform(self._read(int(index), enough))) for index in indices])
        return Batch(torch.from_numpy(images.reshape(*images.shape[:3], -1)), self.labels[indices])

    def file(self, index: int) -> str:
        """Path of one image."""
        return os.fsdecode(self._files[index])

    @override
    def picture(self, index: int) -> Image.Image:
        """One image in RGB, of its own size.

        Raises:
            DataError: it cannot be read, nor, where damaged ones are skipped, any other of its class.
        """
        return self._read(index)

    def _read(self, index: int, enough: int | None = None) -> Image.Image:
        try:
            return read_image(self.file(index), enough)
        except DataError as fault:
            if not self._skip_damaged:
                raise DataError(f"{fault} To go on without it, set --data.damaged skip.") from fault
            note(f"{fault} Another image of its class stands in for it.")
            return self._stand_in(index, fault)

    def _stand_in(self, index: int, fault: DataError) -> Image.Image:
        """The nearest image of its class, in the order of the files, that can be read."""
        alike = (self.labels == self.labels[index]).nonzero().flatten()
        for other in alike[(alike - index).abs().argsort(stable=True)][1:].tolist():
            with contextlib.suppress(DataError):
                return read_image(self.file(other))
        raise fault

    @override
    def subset(self, indices: Indices) -> "StreamedImages":
        chosen = self._files[np.asarray(indices)], self.labels[indices]
        return StreamedImages(*chosen, self._transform, self._evaluation_transform, self._skip_damaged)

    @override
    def for_evaluation(self) -> "StreamedImages":
        transform = self._evaluation_transform
        return StreamedImages(self._files, self.labels, transform, transform, self._skip_damaged)


def in_one_array(paths: Sequence[str]) -> np.ndarray:
    """Paths as bytes ``(N,)``, which loading workers share; of a list each would come to have a copy of its own.

    Python counts who refers to an object in the object: whoever looks at a million texts writes to all their pages.
    """
    return np.array([os.fsencode(path) for path in paths])


def _enough(transform: Transform) -> int | None:
    """Shorter side, in pixels, of which a picture may be made as well as of a larger one; None: of none.

    Twice the picture's is what Pillow takes for its thumbnails. Random crops show a small part of an image.
    """
    return 2 * max(transform.shape[1:]) if isinstance(transform, Fitted) else None


def read_image(path: str, enough: int | None = None) -> Image.Image:
    """Read one image file in RGB, upright.

    Args:
        path: the file.
        enough: shorter side, in pixels, that will do: a larger JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, as
            far as at least that is left.

    Raises:
        DataError: the file is no image, or truncated, or its grey levels have no known white.
    """
    try:
        if not os.path.isfile(path):  # a pipe among them would be waited for
            raise OSError("no file")
        with Image.open(path) as image:
            if enough:
                image.draft(None, (enough, enough))
            with contextlib.suppress(Exception):  # EXIF data that are broken say nothing
                ImageOps.exif_transpose(image, in_place=True)
            return _eight_bits(image).convert("RGB")
    except Exception as fault:  # a damaged file can raise anything in its decoder
        raise DataError(
            f"The image file {path} is damaged or of no kind that can be read ({fault}). Replace it or take it out."
        ) from fault


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits as ones of 8, which Pillow would cut off at 255; others as they are."""
    deep = image.mode == "I" and image.format in ("PNG", "PPM")  # they have no more than 16 bits
    if deep or image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, where white is not known: save 8 or 16 bits")
    return image


class ImageFolder(ImageDataModule):
    """A person's own images: ``ROOT/train/<class>/*`` and ``ROOT/test/<class>/*``.

    The set is called like its folder. Images are turned upright as their EXIF data say, resized (shorter side, then the
    centre) to one size, held in memory as uint8 if they fit, and read from disk batch by batch if not.

    Args:
        root: folder with ``train`` and ``test``, each with one folder per class.
        image_size: side of square images, in pixels, or height and width.
        memory_gib: hold a split in memory up to this size, in GiB.
        random_crop: show a training image as a random resized crop (Szegedy et al., 2015), read from disk each time;
            others are resized to 256/224 of the size then, and cropped at the centre.
        damaged: an image that cannot be read ends the run, or is named and another of its class shown instead.
        cache: folder to keep decoded images in, if they are held in memory: later commands need not decode them.
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
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32,
        memory_gib: NonNegativeFloat = 4.0,
        mean: tuple[Share, Share, Share] = IMAGENET_MEAN,
        std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD,
        random_crop: bool = False,
        damaged: Literal["end", "skip"] = "end",
        cache: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(root=root, **common)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            raise DataError(f"--data.image_size {height}×{width}: Pillow reads no images as large as that.")
        self.image_shape = (3, height, width)
        self.memory_gib, self.mean, self.std = memory_gib, tuple(mean), tuple(std)
        self.random_crop, self.skip_damaged, self.cache = random_crop, damaged == "skip", cache
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
    def transform(self, train: bool) -> Transform:
        """How a decoded image becomes one of the shared size."""
        height, width = self.image_shape[1:]
        if not self.random_crop:
            return super().transform(train)
        if train:
            return v2.RandomResizedCrop((height, width))
        return v2.Compose([v2.Resize(round(max(height, width) * 256 / 224)), v2.CenterCrop((height, width))])

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
        images = StreamedImages(in_one_array(files), torch.tensor(found_labels), *decoding, self.skip_damaged)
        if not train:
            self._test_files = [os.path.relpath(file, folder) for file in files]
        gib = len(images) * np.prod(self.image_shape) / 2**30
        drawn_anew = train and self.random_crop
        return images if drawn_anew or gib > self.memory_gib else self._in_memory(images, str(folder))

    @property
    @override
    def predicted(self) -> dict[str, Sequence[Any]]:
        return {"file": self._test_files, "label": super().predicted["label"]}

    def _in_memory(self, images: StreamedImages, folder: str) -> MemoryImages:
        """Decode every image once and hold them all, or map them from a file that holds them."""
        channels, height, width = self.image_shape
        shape = (len(images), height, width, channels)
        order = torch.arange(len(images)).split(_DECODED_AT_A_TIME)
        batches = loader(images, order, self.num_workers, torch.Generator())  # nothing is drawn from torch's own
        decoded = shown(batches, len(images), folder, quiet=self._process[0] > 0)
        if self.cache is None:
            return MemoryImages(gathered(decoded, shape), images.labels)
        files = map(images.file, range(len(images)))
        file = Path(self.cache) / name_of(files, shape, self.random_crop)
        return MemoryImages(kept(decoded, shape, file), images.labels)


class ImageNet(ImageFolder):
    """ImageNet (ILSVRC 2012) in class folders: ``ROOT/train/<wnid>/*`` and ``ROOT/val/<wnid>/*``.

    Images are read from disk: training images as a random resized crop (Szegedy et al., 2015), the
    others resized to 256/224 of the size and cropped at the centre. The published validation images
    are the test split; ``validation`` is held out of the training images.

    Args:
        root: folder with ``train`` and ``val``.
        image_size: side of square images, in pixels, or height and width.
        augment: random changes to training images besides the crop.
        num_classes: of a folder that holds a part of the classes; by default all 1000.
        damaged: an image that cannot be read ends the run, or is named and another of its class shown instead.
        common: what else every data set takes: see :class:`ImageDataModule`.
    """

    folders = ("train", "val")
    num_classes = 1000

    def __init__(
        self,
        root: str = "data/imagenet",
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224,
        batch_size: PositiveInt = 256,
        augment: Augment = Augment(flip=True),
        validation: Share = 0.02,
        num_workers: NonNegativeInt = 8,
        num_classes: PositiveInt | None = None,
        damaged: Literal["end", "skip"] = "end",
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
            random_crop=True,
            damaged=damaged,
            **common,
        )
        self.name = "ImageNet"
        if num_classes is not None:
            self.num_classes = int(num_classes)
            self.name = f"ImageNet-{num_classes}-classes"

    @override
    def load(self, train: bool) -> Images:
        """The images of the training or test folder, if there are as many classes as asked for."""
        if (classes := len(self.classes)) != self.num_classes:
            raise DataError(
                f"{self.root} holds {classes} classes, not {self.num_classes}. "
                f"If it is a part of ImageNet, set --data.num_classes {classes}."
            )
        return super().load(train)
