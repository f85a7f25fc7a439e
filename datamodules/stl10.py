"""STL-10, from the published files, whose checksums are verified."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision import datasets
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import labels_from, planes
from datamodules.images import Images, MemoryImages


class STL10(ImageDataModule):
    """5,000 labelled training and 8,000 test images of 96×96 pixels in 10 classes (Coates et al., 2011).

    Reads ``ROOT/stl10_binary``.
    """

    num_classes = 10
    image_shape = (3, 96, 96)
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)

    @override
    def prepare_data(self) -> None:
        if self.download:
            datasets.STL10(self.root, split="train", download=True)

    @override
    def load(self, train: bool) -> Images:
        """The labelled training images or the test images."""
        files: Sequence[Sequence[str]] = datasets.STL10.train_list[:2] if train else datasets.STL10.test_list
        folder = Path(self.root) / datasets.STL10.base_folder
        one, other = (self.published(folder / name, md5) for name, md5 in files)
        pixels = planes(np.fromfile(one, np.uint8), self.image_shape, one).transpose(0, 3, 2, 1)  # column by column
        images = MemoryImages(np.ascontiguousarray(pixels), labels_from(np.fromfile(other, np.uint8), other, first=1))
        return self.checked(images, f"The pair of data files {one} and {other}")
