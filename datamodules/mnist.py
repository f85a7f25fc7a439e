"""MNIST and Fashion-MNIST, from the published IDX files."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import labels_from, read_idx
from datamodules.images import Images, MemoryImages


class MNIST(ImageDataModule):
    """70,000 handwritten digits of 28×28 grey pixels (LeCun et al., 1998).

    Reads ``ROOT/MNIST/raw/*-ubyte.gz`` or the unpacked files; the checksums of both are verified.

    Attributes:
        source: where the files are published, and the checksums of the packed ones.
        unpacked: checksums of the unpacked files, taken from packed ones with the published checksums.
    """

    num_classes = 10
    image_shape = (1, 28, 28)
    mean = (0.1307,)
    std = (0.3081,)
    source: ClassVar[type[datasets.MNIST]] = datasets.MNIST
    unpacked: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    @override
    def prepare_data(self) -> None:
        if self.download:
            self.source(self.root, download=True)

    @override
    def load(self, train: bool) -> Images:
        """The 60,000 training or 10,000 test images."""
        prefix = "train" if train else "t10k"
        one, other = (self._file(f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        images = MemoryImages(torch.tensor(read_idx(one)[..., None]), labels_from(read_idx(other), other))
        return self.checked(images, f"The pair of data files {one} and {other}")

    def _file(self, name: str) -> Path:
        folder = Path(self.root) / self.name / "raw"
        if (folder / name).is_file():
            return self.published(folder / name, self.unpacked[name])
        return self.published(folder / f"{name}.gz", dict(self.source.resources)[f"{name}.gz"])


class FashionMNIST(MNIST):
    """70,000 pictures of clothing, 28×28 grey pixels (Xiao et al., 2017); files as for MNIST."""

    mean = (0.2860,)
    std = (0.3530,)
    classes = datasets.FashionMNIST.classes
    source = datasets.FashionMNIST
    unpacked = {  # noqa: RUF012  # typed in the base
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
