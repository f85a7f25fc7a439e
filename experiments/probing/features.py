"""Frozen features: what every block makes of every image, computed once and kept in memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.images import Images
from datamodules.loaders import in_order
from models.method import Method


@dataclass(frozen=True)
class Features:
    """Features of some images.

    Attributes:
        kinds: ``block<k>/gap`` (of some methods also ``block<k>/cbe``), or a hidden layer → float32 ``(N, d)``.
        labels: int64 ``(N,)``.
    """

    kinds: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> "Features":
        return Features({kind: values[rows] for kind, values in self.kinds.items()}, self.labels[rows])

    def near(self, device: torch.device) -> "Features":
        """On the GPU if they take at most half of its free memory; else where they are."""
        size = sum(values.nbytes for values in self.kinds.values())
        if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return Features({kind: values.to(device) for kind, values in self.kinds.items()}, self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The images of a data set, un-augmented and in a fixed order.

    Attributes:
        data: the data module, which normalises.
        train, val, test: batches of the splits.
    """

    data: ImageDataModule
    train: DataLoader
    val: DataLoader
    test: DataLoader

    @classmethod
    def of(cls, data: ImageDataModule, trainer: L.Trainer) -> "Splits":
        """Read the data set; validation is held out of the training split, even if the run validated on the test split.

        Args:
            data: the data module.
            trainer: any Trainer that is not training.

        Raises:
            DataError: a file is missing or damaged.
        """
        data.trainer, data.validate_on_test = trainer, False
        if hasattr(data, "views"):  # several views of an image are for training without labels
            data.views = None
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        train = in_order(data.training_images.for_evaluation(), data.batch_size, data.num_workers)
        return cls(data, train, data.val_dataloader(), data.test_dataloader())

    def some(self, count: int) -> "Splits":
        """At most so many images of each split, drawn at random with the seed of the data, in their order."""
        return Splits(self.data, *(self._drawn(loader, count) for loader in (self.train, self.val, self.test)))

    def _drawn(self, loader: DataLoader, count: int) -> DataLoader:
        split = draw(loader.dataset, count, self.data.seed)
        return in_order(split, self.data.batch_size, loader.num_workers)

    def images(self, batch: Batch, device: torch.device) -> Tensor:
        """Normalised float32 ``(B, C, H, W)`` on the device."""
        on_device = move_data_to_device(batch, device)
        return self.data.on_after_batch_transfer(on_device, 0).images

    def read(self, loaders: Sequence[DataLoader], device: torch.device, compute: "Compute") -> "Features":
        """What ``compute`` makes of the images of some of the loaders; those follow each other in the result."""
        batches: Iterator[tuple[Tensor, Tensor]] = (
            (self.images(batch, device), batch.labels) for batch in chain(*loaders)
        )
        return read(batches, sum(len(loader.dataset) for loader in loaders), compute)


def draw(split: Images, count: int, seed: int) -> Images:
    """At most ``count`` images of a split, drawn at random, in their order."""
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return split.subset(drawn.sort().values)


Compute = Callable[[Tensor], Mapping[str, Tensor]]
"""Images ``(B, C, H, W)`` → kind of features → values ``(B, …)``."""


@torch.no_grad()
def read(batches: Iterable[tuple[Tensor, Tensor]], count: int, compute: Compute) -> Features:
    """What ``compute`` makes of ``count`` images, which come in batches with their labels; kept in memory."""
    kinds: dict[str, Tensor] = {}
    labels, done = torch.empty(count, dtype=torch.int64), 0
    for images, classes in batches:
        rows = slice(done, done := done + len(classes))
        labels[rows] = classes
        for kind, values in compute(images).items():
            if kind not in kinds:
                kinds[kind] = torch.empty(count, *values.shape[1:])
            kinds[kind][rows] = values
    return Features(kinds, labels)


def extract(model: Method, splits: Splits, loaders: Sequence[DataLoader], blocks: Sequence[int]) -> Features:
    """Features of some blocks in evaluation mode and float32; blocks behind the last of them are not computed.

    They stay in memory: 4 bytes × images × Σ d, for ImageNet and all four blocks of a ResNet-50
    (d = 256 + 512 + 1024 + 2048) 20 GB.

    Args:
        model: the network; its weights and statistics are only read.
        splits: gives the images.
        loaders: some of the loaders of ``splits``; their images follow each other in the result.
        blocks: numbers of the blocks, from 1.
    """
    model.eval().requires_grad_(False)
    wanted = {f"block{k}" for k in blocks}

    def compute(images: Tensor) -> dict[str, Tensor]:
        found = model.block_features(images, last=max(blocks))
        return {kind: values for kind, values in found.items() if kind.partition("/")[0] in wanted}

    return splits.read(loaders, model.device, compute)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, a model is in evaluation mode; after that every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
