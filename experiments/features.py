"""Frozen features: what every block makes of every image, computed once and kept in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from datamodules import Batch, ImageDataModule
from models import LocalLearning


@dataclass(frozen=True)
class Features:
    """Features of some images.

    Attributes:
        kinds: ``block<k>/gap`` (of some methods also ``block<k>/cbe``) → float32 ``(N, d)``.
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
        return cls(
            data, _in_order(data.train_dataloader(), data.batch_size), data.val_dataloader(), data.test_dataloader()
        )

    def images(self, batch: Batch, device: torch.device) -> Tensor:
        """Normalised float32 ``(B, C, H, W)`` on the device."""
        on_device = move_data_to_device(batch, device)
        return self.data.on_after_batch_transfer(on_device, 0).images


def _in_order(loader: DataLoader, batch_size: int) -> DataLoader:
    """The images of a shuffled, augmenting loader in order and as they are."""
    split = loader.dataset.for_evaluation()
    return DataLoader(
        split,
        batch_sampler=BatchSampler(SequentialSampler(split), batch_size, drop_last=False),
        collate_fn=split.collate,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )


@torch.no_grad()
def extract(model: LocalLearning, splits: Splits, loaders: Sequence[DataLoader], blocks: Sequence[int]) -> Features:
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
    count, done = sum(len(loader.dataset) for loader in loaders), 0
    kinds, labels = {}, torch.empty(count, dtype=torch.int64)
    for batch in chain(*loaders):
        rows = slice(done, done := done + len(batch.labels))
        labels[rows] = batch.labels
        for kind, values in model.block_features(splits.images(batch, model.device), last=max(blocks)).items():
            if kind.partition("/")[0] in wanted:
                if kind not in kinds:
                    kinds[kind] = torch.empty(count, values.shape[1])
                kinds[kind][rows] = values
    return Features(kinds, labels)
