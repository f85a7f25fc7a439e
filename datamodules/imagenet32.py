"""Imagenet32: ImageNet reduced to 32×32 pixels, from the batches that image-net.org hands out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.cifar import read_batches
from datamodules.files import DataError, require
from datamodules.images import Images
from ranges import PositiveInt

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Imagenet32(ImageDataModule):
    """1,281,167 + 50,000 colour images of 32×32 pixels in 1000 classes (Chrabaszcz et al., 2017).

    Reads ``ROOT/train_data_batch_1 … 10`` and ``ROOT/val_data``; the published validation images are
    the test split. Two sets go by this name: an older one (van den Oord et al., 2016) was reduced
    differently and has 49,999 validation images. It is recognised by its count, accepted, and
    called ``Imagenet32-49999`` then, because accuracies on the two do not compare. Nothing is downloaded:
    image-net.org asks for a login. It publishes no checksums either: counts, shapes and labels are checked.

    Args:
        num_classes: of files that hold a part of the classes, with labels 1 … ``num_classes``; by default all 1000.
        common: what every data set takes: see :class:`ImageDataModule`.
    """

    num_classes = 1000
    image_shape = (3, 32, 32)
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    train_files: ClassVar[tuple[str, ...]] = tuple(f"train_data_batch_{i}" for i in range(1, 11))
    train_count: ClassVar[int] = 1_281_167
    test_counts: ClassVar[Mapping[int, str]] = {50_000: "Imagenet32", 49_999: "Imagenet32-49999"}

    def __init__(self, num_classes: PositiveInt | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.part = num_classes is not None
        if num_classes is not None:
            self.num_classes = int(num_classes)
            self.name = f"Imagenet32-{num_classes}-classes"

    @override
    def prepare_data(self) -> None:
        if self.download:
            raise DataError(
                "Imagenet32 cannot be fetched without a login: download 'Imagenet32_train' and 'Imagenet32_val' from "
                f"image-net.org, unpack them into {self.root}, and leave --data.download false."
            )

    @override
    def load(self, train: bool) -> Images:
        """The ten training batches or the validation file.

        Raises:
            DataError: a batch is missing or damaged or there twice, or the count of images or classes is unknown.
        """
        self.note(
            f"no checksums are published for the files of Imagenet32 in {self.root}; "
            "counts, shapes and labels are checked, pixels are not."
        )
        names = self.train_files if train else ("val_data",)
        paths = [require(Path(self.root) / name, fetchable=False) for name in names]
        images = read_batches(paths, self.checked, first_label=1)
        if not self.part:
            self._require_published_count(len(images), train)
        if (classes := len(images.labels.unique())) != self.num_classes:
            raise DataError(
                f"The data files in {self.root} have images of {classes} classes, not of {self.num_classes}: "
                f"set --data.num_classes {classes}."
            )
        return images

    def _require_published_count(self, count: int, train: bool) -> None:
        known = (self.train_count,) if train else tuple(self.test_counts)
        if count not in known:
            published, split = " or ".join(f"{n:,}" for n in known), "training" if train else "validation"
            raise DataError(
                f"{self.root} holds {count:,} {split} images; Imagenet32 has {published}. "
                "For a part of its classes set --data.num_classes."
            )
        if not train:
            self.name = self.test_counts[count]
