"""SVHN and STL-10, from the published files, whose checksums are verified."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from datamodules.base import ImageDataModule
from datamodules.files import require
from datamodules.images import MemoryImages


class SVHN(ImageDataModule):
    """Street-view house numbers, 73,257 + 26,032 colour images of 32×32 pixels (Netzer et al., 2011).

    Reads ``ROOT/train_32x32.mat`` and ``ROOT/test_32x32.mat``.
    """

    num_classes = 10
    image_shape = (3, 32, 32)
    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    def prepare_data(self) -> None:
        """Fetch the files if ``download`` is set."""
        for split in ("train", "test") if self.download else ():
            datasets.SVHN(self.root, split=split, download=True)

    def load(self, train: bool) -> MemoryImages:
        """The training or test images."""
        split = "train" if train else "test"
        _, name, md5 = datasets.SVHN.split_list[split]
        require(Path(self.root) / name, md5)
        dataset = datasets.SVHN(self.root, split=split)
        images = torch.from_numpy(dataset.data).permute(0, 2, 3, 1).contiguous()
        return MemoryImages(images, torch.from_numpy(dataset.labels).long())


class STL10(ImageDataModule):
    """5,000 labelled training and 8,000 test images of 96×96 pixels in 10 classes (Coates et al., 2011).

    Reads ``ROOT/stl10_binary``.
    """

    num_classes = 10
    image_shape = (3, 96, 96)
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)

    def prepare_data(self) -> None:
        """Fetch the files if ``download`` is set."""
        if self.download:
            datasets.STL10(self.root, split="train", download=True)

    def load(self, train: bool) -> MemoryImages:
        """The labelled training images or the test images."""
        files: Sequence[Sequence[str]] = datasets.STL10.train_list[:2] if train else datasets.STL10.test_list
        folder = Path(self.root) / datasets.STL10.base_folder
        pixels, labels = (np.fromfile(require(folder / name, md5), np.uint8) for name, md5 in files)
        images = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # stored column by column
        return MemoryImages(torch.from_numpy(images.copy()), torch.from_numpy(labels).long() - 1)
