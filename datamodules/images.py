"""The images of a split: in memory, and as training loads them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.batch import Batch, Selection
from datamodules.files import DataError

Indices = Tensor | Sequence[int]

Transform = Callable[[Image.Image], Image.Image]
"""How a decoded image becomes one of the size that all images of a split share."""


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> Image.Image:
    """A picture of shape ``(C, H, W)``: the shorter side fits, the centre is cut out, one channel is grey."""
    channels, height, width = shape
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
                f"Cannot hold {share:g} of the {len(self)} {of_what} out for validation: {fault}"
            ) from fault
        kept, held = (self.subset(torch.from_numpy(np.sort(part))) for part in parts)
        return kept, held

    def for_evaluation(self) -> "Images":
        """The same images without the random changes that loading for training makes; by default it makes none."""
        return self


class MemoryImages(Images):
    """Images held in memory as uint8; a batch is one gather.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        indices: which of them belong to this split; all by default.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        self._images, self._every_label = images, labels
        self._indices = torch.arange(len(labels)) if indices is None else indices
        self.labels = labels[self._indices]

    def __getitems__(self, indices: Indices) -> Batch:
        return Batch(self._images.index_select(0, self._indices[indices]), self.labels[indices])

    @override
    def picture(self, index: int) -> Image.Image:
        image = self._images[self._indices[index]].numpy()
        return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)

    @override
    def subset(self, indices: Indices) -> "MemoryImages":
        return MemoryImages(self._images, self._every_label, self._indices[indices])


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
        return self._images.__getitems__(indices)._replace(indices=indices, weights=self._selection.weights[indices])
