"""The images of a split: in memory, and as training loads them."""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batch import Batch, Selection


class Images(Protocol):
    """What a split of a data set must be able to do."""

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Self:
        """Only these images; nothing is copied."""

    def for_evaluation(self) -> Self:
        """The same images without the random changes that loading for training makes."""

    def picture(self, index: int) -> Image.Image:
        """One image, grey or RGB, as it is before anything random."""

    def collate(self, samples: object) -> Batch:
        """What the data set returned for a list of indices, as a batch."""


class MemoryImages(Dataset):
    """Images held in memory as uint8; a batch is one gather.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)``.
        indices: which of them belong to this split; all by default.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        self._images, self._labels = images, labels
        self._indices = torch.arange(len(labels)) if indices is None else indices

    @property
    def labels(self) -> Tensor:
        """Labels of this split, int64 ``(N,)``."""
        return self._labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, indices: Tensor | Sequence[int]) -> Batch:
        chosen = self._indices[indices]
        return Batch(self._images.index_select(0, chosen), self._labels.index_select(0, chosen))

    def picture(self, index: int) -> Image.Image:
        """One image, grey or RGB."""
        image = self._images[self._indices[index]].numpy()
        return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)

    def subset(self, indices: Tensor) -> "MemoryImages":
        """Only these images; nothing is copied."""
        return MemoryImages(self._images, self._labels, self._indices[indices])

    def for_evaluation(self) -> "MemoryImages":
        """The same: images in memory are augmented later."""
        return self

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """A batch comes out of :meth:`__getitems__` complete."""
        return batch


class TrainingImages(Dataset):
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
        indices = self._selection.indices[positions] if self._selection else positions
        load = getattr(self._images, "__getitems__", lambda indices: [self._images[i] for i in indices])
        weights = self._selection.weights[indices] if self._selection else None
        return self._images.collate(load(indices))._replace(indices=indices, weights=weights)

    def for_evaluation(self) -> Images:
        """All images of the split, without random changes."""
        return self._images.for_evaluation()

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """A batch comes out of :meth:`__getitems__` complete."""
        return batch
