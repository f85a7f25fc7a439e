"""Imagenet32: ImageNet reduced to 32×32 pixels, from the batches that image-net.org hands out."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.cifar import images_from_rows
from datamodules.files import DataError, read_pickle, require
from datamodules.images import MemoryImages

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Imagenet32(ImageDataModule):
    """1,281,167 + 50,000 colour images of 32×32 pixels in 1000 classes (Chrabaszcz et al., 2017).

    Reads ``ROOT/train_data_batch_1 … 10`` and ``ROOT/val_data``; the published validation images are
    the test split. Two sets go by this name: an older one (van den Oord et al., 2016) was reduced
    differently and has 49,999 validation images. It is recognised by its count, accepted, and
    called ``Imagenet32-49999`` then, because accuracies on the two do not compare. Nothing is downloaded:
    image-net.org asks for a login.
    """

    num_classes = 1000
    image_shape = (3, 32, 32)
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    train_files: ClassVar[tuple[str, ...]] = tuple(f"train_data_batch_{i}" for i in range(1, 11))
    test_counts: ClassVar[Mapping[int, str]] = {50_000: "Imagenet32", 49_999: "Imagenet32-49999"}

    @override
    def prepare_data(self) -> None:
        if self.download:
            raise DataError(
                "Imagenet32 cannot be fetched without a login: download 'Imagenet32_train' and 'Imagenet32_val' from "
                f"image-net.org, unpack them into {self.root}, and leave --data.download false."
            )

    @override
    def load(self, train: bool) -> MemoryImages:
        """The ten training batches or the validation file.

        Raises:
            DataError: a batch is missing or damaged, or the validation count is unknown.
        """
        images, labels = [], []
        for name in self.train_files if train else ("val_data",):
            path = require(Path(self.root) / name, fetchable=False)
            batch = read_pickle(path, ("data", "labels"))
            images.append(images_from_rows(batch["data"], path))
            labels.append(self._labels(batch["labels"], len(images[-1]), path))
        count = sum(map(len, labels))
        if not train:
            if count not in self.test_counts:
                known = " or ".join(f"{n:,}" for n in self.test_counts)
                raise DataError(f"{Path(self.root) / 'val_data'} holds {count:,} images; Imagenet32 has {known}.")
            self.name = self.test_counts[count]
        return MemoryImages(torch.cat(images), torch.from_numpy(np.concatenate(labels)))

    def _labels(self, raw: object, count: int, path: Path) -> np.ndarray:
        try:
            labels = np.asarray(raw, dtype=np.int64) - 1  # published labels start at 1
        except (TypeError, ValueError, OverflowError) as fault:
            raise DataError(f"The data file {path} has labels that are no numbers ({fault}).") from fault
        if labels.shape != (count,):
            raise DataError(f"The data file {path} holds {count} images but {labels.size} labels.")
        if not np.isin(labels, np.arange(self.num_classes)).all():
            raise DataError(f"The data file {path} has labels outside 1 … {self.num_classes}.")
        return labels
