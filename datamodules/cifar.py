"""CIFAR-10 and CIFAR-100, from the published pickled batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import DataError, labels_from, planes, read_pickle
from datamodules.images import Images, MemoryImages


def read_batches(
    paths: Sequence[Path], checked: Callable[[Images, str], object], label_key: str = "labels", first_label: int = 0
) -> MemoryImages:
    """Images of 32×32 pixels and labels of several pickled batches, one after the other.

    Memory is asked for once and taken as it is filled: it holds the whole and one batch, not everything twice.

    Args:
        paths: the files.
        checked: refuses images that are not as promised; takes what the message begins with.
        label_key: entry of the labels.
        first_label: from which they count.

    Raises:
        DataError: a file is damaged, or something else, or two hold the same.
    """
    at_most = sum(path.stat().st_size for path in paths) // (3 * 32 * 32)  # nothing in them is compressed
    images, labels = torch.empty(at_most, 32, 32, 3, dtype=torch.uint8), torch.empty(at_most, dtype=torch.int64)
    found: dict[Path, slice] = {}
    end = 0
    for path in paths:
        batch = _read_batch(path, label_key, first_label)
        checked(MemoryImages(*batch), f"The data file {path}")
        here = slice(end, end := end + len(batch[1]))
        images[here], labels[here] = map(torch.from_numpy, batch)
        for other, there in found.items():
            if torch.equal(labels[there], labels[here]) and torch.equal(images[there], images[here]):
                raise DataError(f"The data files {other} and {path} hold the same images: fetch them again.")
        found[path] = here
    return MemoryImages(images[:end], labels[:end])


def _read_batch(path: Path, label_key: str, first_label: int) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path, ("data", label_key))
    images = planes(batch["data"], (3, 32, 32), path).transpose(0, 2, 3, 1)
    return images, labels_from(batch[label_key], path, first_label)


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
        folder = Path(self.root) / self.source.base_folder
        listed = self.source.train_list if train else self.source.test_list
        return read_batches([self.published(folder / name, md5) for name, md5 in listed], self.checked, self.label_key)


class CIFAR100(CIFAR10):
    """60,000 colour images of 32×32 pixels in 100 classes; reads ``ROOT/cifar-100-python``."""

    num_classes = 100
    source = datasets.CIFAR100
    label_key = "fine_labels"
