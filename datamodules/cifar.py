"""CIFAR-10 and CIFAR-100, from the published pickled batches."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import labels_from, planes, read_pickle
from datamodules.images import Images, MemoryImages


def read_batch(path: Path, label_key: str = "labels", first_label: int = 0) -> MemoryImages:
    """Images of 32×32 pixels and labels of a pickled batch.

    Raises:
        DataError: the file is damaged, or something else.
    """
    batch = read_pickle(path, ("data", label_key))
    images = planes(batch["data"], (3, 32, 32), path).transpose(0, 2, 3, 1)
    return MemoryImages(np.array(images, order="C"), labels_from(batch[label_key], path, first_label))


class CIFAR10(ImageDataModule):
    """60,000 colour images of 32×32 pixels in 10 classes (Krizhevsky, 2009).

    Reads ``ROOT/cifar-10-batches-py``, verifies the published checksums, and unpickles nothing but
    arrays and plain values. Mean and std are those of the published local-learning recipes.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    std = (63.0 / 255, 62.1 / 255, 66.7 / 255)
    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    label_key: ClassVar[str] = "labels"

    @override
    def prepare_data(self) -> None:
        if self.download:
            self.source(self.root, download=True)

    @override
    def load(self, train: bool) -> Images:
        """The 50,000 training or 10,000 test images."""
        batches = {}
        for name, md5 in self.source.train_list if train else self.source.test_list:
            path = self.published(Path(self.root) / self.source.base_folder / name, md5)
            batches[path] = read_batch(path, self.label_key)
            self.checked(batches[path], f"The data file {path}")
        return MemoryImages.joined(batches)


class CIFAR100(CIFAR10):
    """60,000 colour images of 32×32 pixels in 100 classes; reads ``ROOT/cifar-100-python``."""

    num_classes = 100
    source = datasets.CIFAR100
    label_key = "fine_labels"
