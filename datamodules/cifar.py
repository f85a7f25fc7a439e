"""CIFAR-10 and CIFAR-100, from the published pickled batches."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import DataError, read_pickle, require
from datamodules.images import MemoryImages


def images_from_rows(rows: np.ndarray, path: Path) -> Tensor:
    """Rows of 3072 bytes (all red, all green, all blue of 32×32 pixels) → uint8 ``(N, 32, 32, 3)``.

    Raises:
        DataError: the rows are not of that form; ``path`` is named.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
        raise DataError(f"The data file {path} does not hold 32×32 colour images as rows of 3072 bytes.")
    return torch.from_numpy(np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))


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
    def load(self, train: bool) -> MemoryImages:
        """The 50,000 training or 10,000 test images."""
        images, labels = [], []
        for name, md5 in self.source.train_list if train else self.source.test_list:
            path = require(Path(self.root) / self.source.base_folder / name, md5)
            batch = read_pickle(path, ("data", self.label_key))
            images.append(images_from_rows(batch["data"], path))
            labels += batch[self.label_key]
        return MemoryImages(torch.cat(images), torch.tensor(labels))


class CIFAR100(CIFAR10):
    """60,000 colour images of 32×32 pixels in 100 classes; reads ``ROOT/cifar-100-python``."""

    num_classes = 100
    source = datasets.CIFAR100
    label_key = "fine_labels"
