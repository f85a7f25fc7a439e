"""MNIST and Fashion-MNIST, from the published IDX files."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import DataError, read_idx, require
from datamodules.images import MemoryImages


class MNIST(ImageDataModule):
    """70,000 handwritten digits of 28×28 grey pixels (LeCun et al., 1998).

    Reads ``ROOT/MNIST/raw/*-ubyte.gz``, whose checksums are verified, or the unpacked files.
    """

    num_classes = 10
    image_shape = (1, 28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    source: ClassVar[type[datasets.MNIST]] = datasets.MNIST

    @override
    def prepare_data(self) -> None:
        if self.download:
            self.source(self.root, download=True)

    @override
    def load(self, train: bool) -> MemoryImages:
        """The 60,000 training or 10,000 test images."""
        prefix = "train" if train else "t10k"
        images, labels = (self._read(f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if len(images) != len(labels) or images.shape[1:] != self.image_shape[1:]:
            raise DataError(
                f"The {self.name} files do not belong together: {images.shape} images, {len(labels)} labels."
            )
        return MemoryImages(torch.tensor(images).unsqueeze(3), torch.tensor(labels).long())

    def _read(self, name: str) -> np.ndarray:
        folder = Path(self.root) / self.name / "raw"
        if (folder / name).is_file():
            return read_idx(folder / name)
        return read_idx(require(folder / f"{name}.gz", dict(self.source.resources)[f"{name}.gz"]))


class FashionMNIST(MNIST):
    """70,000 pictures of clothing, 28×28 grey pixels (Xiao et al., 2017); files as for MNIST."""

    mean = (0.2860,)
    std = (0.3530,)
    classes = datasets.FashionMNIST.classes
    source = datasets.FashionMNIST
