"""SVHN, from the published files, whose checksums are verified."""

from pathlib import Path

import torch
from torchvision import datasets
from typing_extensions import override

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

    @override
    def prepare_data(self) -> None:
        for split in ("train", "test") if self.download else ():
            datasets.SVHN(self.root, split=split, download=True)

    @override
    def load(self, train: bool) -> MemoryImages:
        """The training or test images."""
        split = "train" if train else "test"
        _, name, md5 = datasets.SVHN.split_list[split]
        require(Path(self.root) / name, md5)
        dataset = datasets.SVHN(self.root, split=split)
        images = torch.from_numpy(dataset.data).permute(0, 2, 3, 1).contiguous()
        return MemoryImages(images, torch.from_numpy(dataset.labels).long())
