"""What a learning block reads, computed once by the frozen blocks before it and kept in a feature store."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from losses.errors import UsageError
from models.parts.feature_store import FeatureStore, StoredFeatures


class TrainingData(Protocol):
    """What is asked of a data module."""

    batch_size: int
    training_images: Any

    def training_pass(self, number: int | None, device: torch.device) -> Iterable[Any]:
        """Batches of all training images in order, with their ``indices``, augmented as a function of the number."""


class StoredInputs:
    """Features of all training images after the frozen blocks, in augmented versions, of which an epoch reads one.

    Args:
        store: where they are kept.
        epochs: of a block: no more versions are stored than it reads.

    Attributes:
        blocks: number of blocks whose output is stored; 0: nothing is yet.
    """

    def __init__(self, store: FeatureStore, epochs: int) -> None:
        self.store, self.passes, self.blocks = store, min(store.passes, epochs), 0
        self._features: StoredFeatures | None = None

    def read(self, epoch: int, images: Tensor, indices: Tensor | None) -> Tensor:
        """What is stored of images, or, if nothing is, the images; ``epoch`` (of the block) says which version."""
        if self._features is None or indices is None:
            return images
        return self._features.read(epoch % self.passes, indices.cpu()).to(images.device)

    @torch.no_grad()
    def advance(self, blocks: Sequence[nn.Module], data: TrainingData, device: torch.device) -> None:
        """Store what all these frozen blocks hand on, in place of what the first of them did.

        Raises:
            UsageError: there is no room, or what comes out of the store is not what the images give.
        """
        new = None
        with isolate_rng():  # a resumed run stores anew: the step's random numbers stay the same
            for number in range(self.passes):
                for indices, x in self._versions(number, data, device):
                    features = self._through(blocks[self.blocks :], x)
                    new = new or self.store.new(self.passes, len(data.training_images), features.shape[1:])
                    new.write(number, indices.cpu(), features)
            self.close()
            self._features, self.blocks = new, len(blocks)
            self._compare_with_recomputed(blocks, data, device)

    def close(self) -> None:
        """Free the memory, or remove the file."""
        if self._features:
            self._features.close()
        self._features, self.blocks = None, 0

    def _versions(self, number: int, data: TrainingData, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and features, or at first augmented images, of pass ``number``, in order."""
        if self._features is None:
            yield from ((batch.indices, batch.images) for batch in data.training_pass(number, device))
        else:
            for indices in torch.arange(len(self._features)).split(data.batch_size):
                yield indices, self._features.read(number, indices).to(device)

    def _through(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        for block in blocks:
            x = self.store.rounded(block(x))
        return x

    def _compare_with_recomputed(self, blocks: Sequence[nn.Module], data: TrainingData, device: torch.device) -> None:
        """See on one batch that what was handed from store to store is what the images give."""
        batch = next(iter(data.training_pass(0, device)))
        stored = self.read(0, batch.images, batch.indices).cpu()
        right = self._through(blocks, batch.images).cpu()
        if not torch.allclose(stored, right, rtol=1e-3, atol=1e-3 * float(right.abs().max())):
            raise UsageError(
                f"Stored features of block {len(blocks)} differ from recomputed ones by "
                f"{(stored - right).abs().max():.3g}. Does the data module augment a pass twice in the same way? If "
                "not, train without a store."
            )
