"""SVHN, from the published files, whose checksums are verified."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import DataError, labels_from, require
from datamodules.images import MemoryImages


class SVHN(ImageDataModule):
    """Street-view house numbers, 73,257 + 26,032 colour images of 32×32 pixels (Netzer et al., 2011).

    Reads ``ROOT/train_32x32.mat`` and ``ROOT/test_32x32.mat``.

    Args:
        common: what every data set takes, but not ``checksums``: see :class:`ImageDataModule`.

    Raises:
        DataError: files that were packed anew are asked for.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        if not self.checksums:
            raise DataError(
                "SVHN is always compared with its checksums, because SciPy crashes on MATLAB files that are damaged: "
                "leave --data.checksums true."
            )

    @override
    def prepare_data(self) -> None:
        for split in ("train", "test") if self.download else ():
            datasets.SVHN(self.root, split=split, download=True)

    @override
    def load(self, train: bool) -> MemoryImages:
        """The training or test images."""
        from scipy.io import loadmat  # takes a while to import

        _, name, md5 = datasets.SVHN.split_list["train" if train else "test"]
        path = require(Path(self.root) / name, md5)
        arrays = loadmat(path)  # X: (32, 32, 3, N); y: (N, 1), the digit 0 as 10
        images = np.ascontiguousarray(np.moveaxis(arrays["X"], -1, 0))
        return MemoryImages(images, labels_from(arrays["y"].ravel(), path) % 10)
