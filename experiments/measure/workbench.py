"""Where ``bench`` measures: random images like a data set's, a bare loop, and one device for all contenders."""

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.images import MemoryImages
from experiments.measure.silent import silent_trainer
from experiments.measure.turns import now
from experiments.run.loggers import RunCSVLogger, RunTensorBoardLogger
from models.local_learning import LocalLearning
from models.networks.memory.saved_tensors import SavedTensorMeter

_WARM_UP = 2


class RandomImages(L.LightningDataModule):
    """Random images with the shape, batch size and augmentation of a real data module.

    The bench needs no files: it takes the time of a data set's own path from store to device.

    Args:
        data: the data module to imitate.
        batches: batches per epoch.
    """

    def __init__(self, data: ImageDataModule, batches: int) -> None:
        super().__init__()
        channels, height, width = data.image_shape
        count = data.batch_size * batches
        images = torch.randint(256, (count, height, width, channels), dtype=torch.uint8)
        self._images = MemoryImages(images, torch.randint(data.num_classes, (count,)))
        self._data, self.batch_size = data, data.batch_size

    @override
    def train_dataloader(self) -> DataLoader:
        return self._data.training_loader(self._images, self._data.epochs_of(self._images), num_workers=0)

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment and normalise, or make views, as the data module does."""
        return self._data.training_batch(batch)


class _Clock(L.Callback):
    """Mean seconds per step of one repetition, warm-up left out."""

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == _WARM_UP:
            self._start = now(pl_module.device)
        if trainer.global_step == trainer.max_steps:
            self.step_seconds = (now(pl_module.device) - self._start) / (trainer.max_steps - _WARM_UP)


class Workbench:
    """One device, one precision, one store of images: where all contenders of a ``bench`` are measured alike."""

    def __init__(self, data: ImageDataModule, trainer: L.Trainer, steps: int) -> None:
        self.device, self.steps = trainer.strategy.root_device, steps
        self.batches = RandomImages(data, steps + _WARM_UP)
        sample = next(iter(self.batches.train_dataloader()))
        self._sample = self.batches.on_after_batch_transfer(move_data_to_device(sample, self.device), 0)
        self._autocast = trainer.precision_plugin.train_step_context
        self._make_trainer = partial(silent_trainer, accelerator=self.device.type, precision=trainer.precision)

    def step_seconds(self, model: LocalLearning) -> float:
        """Seconds per step through Lightning, with both loggers writing once."""
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._make_trainer(
                logger=[RunTensorBoardLogger(Path(folder)), RunCSVLogger(Path(folder))],
                callbacks=[clock],
                max_steps=self.steps + _WARM_UP,
                log_every_n_steps=self.steps,
            )
            trainer.fit(model, datamodule=self.batches)
        return clock.step_seconds

    def plain_step_seconds(self, model: LocalLearning) -> float:
        """Seconds per step of a bare loop on one ready batch."""
        with self._autocast():
            step = plain_steps(model.to(self.device), self._sample)
            for _ in range(_WARM_UP):
                next(step)
            start = now(self.device)
            for _ in range(self.steps):
                next(step)
            return (now(self.device) - start) / self.steps

    def peak_bytes(self, model: LocalLearning) -> int:
        """Most activation bytes at one time in a step (the second: the first makes optimizer buffers)."""
        with self._autocast():
            step = plain_steps(model.to(self.device), self._sample)
            next(step)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                next(step)
                return torch.cuda.max_memory_allocated(self.device) - before
            with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
                next(step)
            return meter.peak


def plain_steps(model: LocalLearning, batch: Batch) -> Iterator[None]:
    """The method's training steps without Lightning: one per ``next``."""
    model.train()
    optimizers = [model.make_optimizer(model.block_parameters(k)) for k in range(model.schedule.parts)]

    def backward_block(k: int, loss: torch.Tensor, retain_graph: bool = False) -> None:
        loss.backward(retain_graph=retain_graph)

    def step_block(k: int) -> None:
        optimizers[k].step()
        optimizers[k].zero_grad()

    while True:
        # Only for this step: the same model also trains through Lightning.
        model.backward_block, model.step_block = backward_block, step_block  # type: ignore[method-assign] # on purpose
        try:
            model.training_step(batch, 0)
        finally:
            del model.backward_block, model.step_block
        yield


def loader_speed(batches: RandomImages) -> float:
    """Images/s from the store in memory to an augmented, normalised batch, on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return statistics.median(_images_per_second(batches, 0.2) for _ in range(5))
    finally:
        torch.set_num_threads(threads)


def _images_per_second(batches: RandomImages, seconds: float) -> float:
    count, start = 0, now()
    while now() - start < seconds:
        for batch in batches.train_dataloader():
            count += len(batches.on_after_batch_transfer(batch, 0).images)
    return count / (now() - start)
