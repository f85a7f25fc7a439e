"""Features that frozen blocks hand on, computed once and read back in every epoch of the block that learns."""

import math
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from losses.errors import UsageError
from ranges import PositiveInt


class FeatureStore:
    """How to store features: in memory, or in a file that every reading of is checked.

    With random augmentation a block sees the images in ``passes`` augmented versions, one after the
    other and then again, instead of in new ones in every epoch. A store takes passes × training
    images × size of an image's features; while it is exchanged for the next block's, both are there.

    Args:
        passes: number of augmented versions, of which a block reads one per epoch; 1 if the data are not augmented.
        folder: folder for the file, which has no name and is gone with the process; in memory by default.
        dtype: what features are rounded to, for all blocks behind alike.

    Raises:
        UsageError: fewer than one pass.
    """

    def __init__(
        self,
        passes: PositiveInt = 1,
        folder: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        if passes < 1:
            raise UsageError(f"A feature store holds at least 1 pass over the data, not {passes}.")
        self.passes, self.folder, self.dtype = passes, folder, getattr(torch, dtype)

    def require_folder(self) -> None:
        """See that the folder, if there is one, can be written."""
        if self.folder is not None:
            _reserve(Path(self.folder), 1)

    def rounded(self, features: Tensor) -> Tensor:
        """Features as they will be read back, float32."""
        return features.to(self.dtype).float()


class StoredFeatures:
    """Features of all training images in a number of passes.

    Args:
        store: where and how to store them.
        passes: number of passes.
        images: N.
        shape: of one image's features.
        held: bytes of the store that these features are made from, which is there until they are complete.

    Attributes:
        size: bytes.

    Raises:
        UsageError: there is not enough memory, or room on the disk.
    """

    def __init__(self, store: FeatureStore, passes: int, images: int, shape: Sequence[int], held: int = 0) -> None:
        channels, *sides = shape
        rows = passes, images, *sides, channels  # channels last, as networks run
        count = math.prod(rows)
        self.size = count * store.dtype.itemsize
        self._folder = store.folder
        if store.folder is None:
            _require_memory(self.size, held)
            self._rows = torch.empty(rows, dtype=store.dtype)
        else:
            self._rows = torch.frombuffer(_reserve(Path(store.folder), self.size), dtype=store.dtype).view(rows)
        self._checksums = np.zeros((passes, images), np.uint32)

    def __len__(self) -> int:
        return self._rows.shape[1]

    def write(self, number: int, indices: Tensor, features: Tensor) -> None:
        """Keep features ``(B, …)`` of the images with these indices ``(B,)`` as those of pass ``number``."""
        rows = features.movedim(1, -1).to("cpu", self._rows.dtype)
        self._rows[number, indices] = rows
        if self._folder:
            self._checksums[number, indices] = _checksums(rows)

    def read(self, number: int, indices: Tensor) -> Tensor:
        """Features ``(B, …)`` of these images in pass ``number``, float32.

        Raises:
            UsageError: the file was altered.
        """
        rows = self._rows[number, indices]
        if self._folder and (self._checksums[number, indices] != _checksums(rows)).any():
            raise UsageError(
                f"The feature store in {self._folder} was altered on the disk. Go on from the last checkpoint with "
                "--ckpt_path last: the features are then computed anew."
            )
        return rows.float().movedim(-1, 1)

    def close(self) -> None:
        """Free the memory, or the room on the disk."""
        del self._rows


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
        epochs: of each block: no more versions are stored than those that are still to learn read.

    Attributes:
        blocks: number of blocks whose output is stored; 0: nothing is yet.
    """

    def __init__(self, store: FeatureStore, epochs: Sequence[int]) -> None:
        self.store, self.epochs, self.passes, self.blocks = store, epochs, 0, 0
        self._features: StoredFeatures | None = None

    def read(self, epoch: int, images: Tensor, indices: Tensor | None) -> Tensor:
        """What is stored of images, or, if nothing is, the images; ``epoch`` (of the block) says which version."""
        if self._features is None or indices is None:
            return images
        return self._features.read(epoch % self.passes, indices.cpu()).to(indices.device)

    @torch.no_grad()
    def advance(self, blocks: Sequence[nn.Module], data: TrainingData, device: torch.device) -> None:
        """Store what all these frozen blocks hand on, in place of what the first of them did.

        Raises:
            UsageError: there is no room, or what comes out of the store is not what the images give.
        """
        new, self.passes = None, min(self.store.passes, max(self.epochs[len(blocks) :]))
        held = self._features.size if self._features else 0
        with isolate_rng():  # a resumed run stores anew: the step's random numbers stay the same
            for number in range(self.passes):
                for indices, x in self._versions(number, data, device):
                    features = self._through(blocks[self.blocks :], x)
                    new = new or StoredFeatures(
                        self.store, self.passes, len(data.training_images), features.shape[1:], held
                    )
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


def _checksums(rows: Tensor) -> np.ndarray:
    """CRC-32 of each row."""
    flat = rows.contiguous().flatten(1).view(torch.uint8).numpy()
    return np.fromiter((zlib.crc32(row) for row in flat), np.uint32, len(flat))


def _require_memory(size: int, held: int) -> None:
    """See that so many bytes fit beside those that are held."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - held
    if size > there:
        beside = f" beside the {_size(held)} of the store that it is made from" if held else ""
        raise _too_large(size, there, f"memory is there{beside}", "give it a folder on a disk")


def _reserve(folder: Path, size: int) -> mmap.mmap:
    """A mapped file of this size whose room on the disk is taken: writing to it could not report a full one.

    It has no name: nobody else can shorten it, and however the process ends, nothing of it is left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise _too_large(size, free, f"is free in {folder}", "choose another folder")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError as fault:
        raise UsageError(
            f"The feature store ({_size(size)}) cannot be written to {folder} ({fault.strerror}). Choose "
            "another folder, fewer passes, or a smaller dtype; then go on with --ckpt_path last."
        ) from fault


def _too_large(size: int, there: int, where: str, instead: str) -> UsageError:
    return UsageError(
        f"The feature store needs {_size(size)}, but only {_size(there)} {where}. Take fewer passes "
        f"or a smaller dtype, or {instead}; then go on with --ckpt_path last."
    )


def _size(size: int) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
