"""What the tests of data modules share."""

from collections.abc import Callable
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from training import train

from datamodules.base import ImageDataModule


@pytest.fixture
def ready() -> Callable[..., ImageDataModule]:
    """Sets a data module up as a trainer would that stands at a given step."""

    def set_up(module, stage="fit", step=0, limit=1.0, training=True, process=(0, 1)):
        rank, processes = process
        shared = {"rank": rank, "num_replicas": processes}
        module.trainer = SimpleNamespace(
            global_step=step,
            limit_train_batches=limit,
            training=training,
            global_rank=rank,
            world_size=processes,
            strategy=SimpleNamespace(distributed_sampler_kwargs=shared),
        )
        module.setup(stage)
        return module

    return set_up


class Watcher(L.LightningModule):
    """Learns nothing; remembers its batches, those of training epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def on_train_epoch_start(self):
        self.trained.append([])

    def training_step(self, batch, batch_idx):
        self.trained[-1].append(batch)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def watch(tmp_path) -> Callable[[ImageDataModule], Watcher]:
    """What two whole epochs under a Trainer show of a data module."""

    def fit(data):
        watcher = Watcher()
        train(watcher, tmp_path, data, limit_train_batches=1.0, limit_val_batches=1.0)
        return watcher

    return fit
