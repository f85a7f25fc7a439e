"""SVHN, from the published files, whose checksums are verified."""

from pathlib import Path

import numpy as np
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import bytes_from, labels_from, read_mat
from datamodules.images import Images, MemoryImages


class SVHN(ImageDataModule):
    """Street-view house numbers, 73,257 + 26,032 colour images of 32×32 pixels (Netzer et al., 2011).

    Reads ``ROOT/train_32x32.mat`` and ``ROOT/test_32x32.mat``.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    @override
    def prepare_data(self) -> None:
        for split in ("train", "test") if self.download else ():
            datasets.SVHN(self.root, split=split, download=True)

    @override
    def load(self, train: bool) -> Images:
        """The training or test images."""
        _, name, md5 = datasets.SVHN.split_list["train" if train else "test"]
        path = self.published(Path(self.root) / name, md5)
        arrays = read_mat(path, ("X", "y"))  # (32, 32, 3, N) and (N, 1)
        labels = labels_from(np.ravel(arrays["y"]), path)
        images = np.ascontiguousarray(np.moveaxis(bytes_from(arrays["X"], path), -1, 0))
        return self.checked(MemoryImages(images, np.where(labels == 10, 0, labels)), f"The data file {path}")
