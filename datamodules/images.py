"""The images of a split: in memory, and as training loads them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.batch import Batch, Selection
from datamodules.files import DataError

Indices = Tensor | Sequence[int]

UNKNOWN = -1
"""Stands in for a label that is not shown."""

Transform = Callable[[Image.Image], Image.Image]
"""How a decoded image becomes one of the size that all images of a split share."""


@dataclass(frozen=True)
class Fitted:
    """Makes a picture of a shape ``(C, H, W)``: the shorter side fits, the centre is cut out, one channel is grey."""

    shape: tuple[int, int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        """The picture of an image of any size."""
        channels, height, width = self.shape
        small = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return small.convert("L") if channels == 1 else small


class Images(Dataset[Batch], ABC):
    """A split of a data set. A loader asks it for a whole batch at once.

    Attributes:
        labels: int64 ``(N,)``.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitems__(self, indices: Indices) -> Batch: ...

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """One image, grey or RGB, as it is before anything random."""

    @abstractmethod
    def subset(self, indices: Indices) -> "Images":
        """Only these images; nothing is copied."""

    def require(self, image_shape: tuple[int, int, int], num_classes: int, dtype: torch.dtype, where: str) -> None:
        """See that these are what a data set promises; of the images one stands for all.

        Args:
            image_shape: ``(C, H, W)``.
            num_classes: labels are 0 … ``num_classes`` - 1.
            dtype: of the images.
            where: the images are, to begin the message with.

        Raises:
            DataError: there are none, or images or labels are of another kind, or labels out of range.
        """
        if not len(self):
            raise DataError(f"{where} has no images.")
        if self.labels.ndim != 1 or self.labels.dtype != torch.int64:
            raise DataError(
                f"{where} has labels of shape {tuple(self.labels.shape)} and type {self.labels.dtype}; "
                "every image needs one whole number."
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"{where} has labels from {low} to {high}, counted from 0; "
                f"those of {num_classes} classes go from 0 to {num_classes - 1}."
            )
        image, (channels, height, width) = self.for_evaluation().__getitems__(torch.tensor([0])).images[0], image_shape
        if image.shape != (height, width, channels) or image.dtype != dtype:
            raise DataError(
                f"{where} has images of shape {tuple(image.shape)} and type {image.dtype}; "
                f"those of the data set are (height, width, channels) = {(height, width, channels)} and {dtype}."
            )

    def hold_out(self, share: float, of_what: str) -> tuple["Images", "Images"]:
        """What is kept and what is held out, in the order of this split: stratified by class, always the same.

        ``share`` is that of the images held out, between 0 and 1; ``of_what`` names them all in the message.

        Raises:
            DataError: a class would have no image on one of the sides.
        """
        from sklearn.model_selection import train_test_split  # takes half a second to import

        everything = np.arange(len(self))
        try:
            parts = train_test_split(everything, test_size=share, random_state=0, stratify=self.labels.numpy())
        except ValueError as fault:
            raise DataError(
                f"Cannot hold {share:g} of the {len(self)} {of_what} out for validation: {fault} "
                "Change --data.validation."
            ) from fault
        kept, held = (self.subset(torch.from_numpy(np.sort(part))) for part in parts)
        return kept, held

    def some_of_each_class(self, count: int, seed: int) -> Tensor:
        """Places of so many of the images, drawn class by class with the seed, in their order.

        Raises:
            DataError: they do not reach for each class, or none would be left.
        """
        from sklearn.model_selection import train_test_split  # takes half a second to import

        try:
            drawn, _ = train_test_split(
                np.arange(len(self)), train_size=count, random_state=seed, stratify=self.labels.numpy()
            )
        except ValueError as fault:
            classes = len(self.labels.unique())
            raise DataError(
                f"{count} of {len(self)} training images with labels are too "
                f"{'few, one for each class at least' if count < classes else 'many: each class needs one without'}. "
                f"Choose --data.labels from {classes} to {len(self) - classes}."
            ) from fault
        return torch.from_numpy(np.sort(drawn))

    def for_evaluation(self) -> "Images":
        """The same images without the random changes that loading for training makes; by default it makes none."""
        return self


class MemoryImages(Images):
    """Images held in memory as uint8; a batch is one gather.

    Args:
        images: uint8 ``(N, H, W, C)``, a tensor or an array; of a data set that says so another type.
        labels: whole numbers ``(N,)``, likewise.
        indices: which of them belong to this split; all by default.

    Raises:
        DataError: images or labels are no numbers.
    """

    def __init__(self, images: Any, labels: Any, indices: Tensor | None = None) -> None:
        self._images, self._every_label = _numbers(images, "images"), _numbers(labels, "labels")
        if self._every_label.dtype != torch.bool and not self._every_label.is_floating_point():
            self._every_label = self._every_label.long()
        self._indices = torch.arange(len(self._every_label)) if indices is None else indices
        self.labels = self._every_label[self._indices]

    def __getitems__(self, indices: Indices) -> Batch:
        return Batch(self._images.index_select(0, self._indices[indices]), self.labels[indices])

    @override
    def require(self, image_shape: tuple[int, int, int], num_classes: int, dtype: torch.dtype, where: str) -> None:
        if len(self._images) != len(self._every_label):
            raise DataError(f"{where} has {len(self._images)} images, but {len(self._every_label)} labels.")
        super().require(image_shape, num_classes, dtype, where)

    @override
    def picture(self, index: int) -> Image.Image:
        image = self._images[self._indices[index]].numpy()
        return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)

    @override
    def subset(self, indices: Indices) -> "MemoryImages":
        return MemoryImages(self._images, self._every_label, self._indices[indices])


def _numbers(values: Any, what: str) -> Tensor:
    try:
        return torch.atleast_1d(torch.as_tensor(values))
    except (TypeError, ValueError, RuntimeError) as fault:
        raise DataError(f"The {what} of a data set are a tensor or an array of numbers ({fault}).") from fault


class TrainingImages(Dataset[Batch]):
    """A training split, or a selection of it, whose batches say which images they hold.

    Args:
        images: the split.
        selection: which of its images an epoch has; all by default.
    """

    def __init__(self, images: Images, selection: Selection | None = None) -> None:
        self._images, self._selection = images, selection

    def __len__(self) -> int:
        return len(self._selection.indices) if self._selection else len(self._images)

    def __getitems__(self, positions: Tensor) -> Batch:
        if not self._selection:
            return self._images.__getitems__(positions)._replace(indices=positions)
        indices = self._selection.indices[positions]
        batch = self._images.__getitems__(indices)
        labels = batch.labels if self._selection.labelled else torch.full_like(batch.labels, UNKNOWN)
        return batch._replace(labels=labels, indices=indices, weights=self._selection.weights[indices])
