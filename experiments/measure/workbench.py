"""Where ``bench`` measures: random images like a data set's, a bare loop, and one device for all contenders."""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
from experiments.measure.turns import now, threads
from experiments.run.loggers import RunCSVLogger, RunTensorBoardLogger
from models.local_learning import LocalLearning
from models.networks.memory.saved_tensors import SavedTensorMeter

_WARM_UP = 2


class RandomImages(L.LightningDataModule):
    """Random images with the shape, batch size and augmentation of a real data module.

    The bench needs no files: it takes the time of a data set's own path from store to device.

    Args:
        data: the data module to imitate, or an imitation of it.
        batches: batches per epoch.

    Attributes:
        imitated: the data module.
    """

    imitated: ImageDataModule

    def __init__(self, data: "ImageDataModule | RandomImages", batches: int) -> None:
        super().__init__()
        data = data.imitated if isinstance(data, RandomImages) else data
        channels, height, width = data.image_shape
        count = data.batch_size * batches
        images = torch.randint(256, (count, height, width, channels), dtype=torch.uint8)
        self._images = MemoryImages(images, torch.randint(data.num_classes, (count,)))
        self.imitated, self.batch_size = data, data.batch_size

    @override
    def train_dataloader(self) -> DataLoader:
        return self.imitated.training_loader(self._images, self.imitated.epochs_of(self._images), num_workers=0)

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment and normalise, or make views, as the data module does."""
        return self.imitated.training_batch(batch)


class Clock(L.Callback):
    """What meters gain per step of one repetition.

    Args:
        meters: name → what reads it.
        steps: those that count; others are before and after them.
    """

    def __init__(self, meters: Mapping[str, Callable[[], float]], steps: range) -> None:
        self._meters, self._steps = meters, steps
        self._readings: list[dict[str, float]] = []

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.after(trainer.global_step)

    def after(self, step: int) -> None:
        """So many steps are done."""
        if step in (self._steps.start, self._steps.stop):
            self._readings.append({name: read() for name, read in self._meters.items()})

    @property
    def per_step(self) -> dict[str, float]:
        """Name → mean gain."""
        before, after = self._readings
        return {name: (after[name] - before[name]) / len(self._steps) for name in after}


class Workbench:
    """One device, one precision, one store of images: where all contenders of a ``bench`` are measured alike.

    Args:
        data: gives image shape, batch size and augmentation.
        trainer: gives device and precision.
        steps: that are measured in a repetition.
        warm_up: steps before them.
        cool_down: steps after them.

    Attributes:
        sample: a batch on the device, ready for a training step.
    """

    def __init__(
        self, data: ImageDataModule, trainer: L.Trainer, steps: int, warm_up: int = _WARM_UP, cool_down: int = 0
    ) -> None:
        self.device, self.steps = trainer.strategy.root_device, steps
        self._measured, self._all_steps = range(warm_up, warm_up + steps), warm_up + steps + cool_down
        self.batches = RandomImages(data, self._all_steps)
        sample = next(iter(self.batches.train_dataloader()))
        self.sample = self.batches.on_after_batch_transfer(move_data_to_device(sample, self.device), 0)
        self._autocast = trainer.precision_plugin.train_step_context
        self._make_trainer = partial(silent_trainer, accelerator=self.device.type, precision=trainer.precision)

    def step_seconds(self, model: LocalLearning) -> float:
        """Seconds per step through Lightning."""
        return self.per_step(model, {"seconds": partial(now, self.device)})["seconds"]

    def per_step(
        self, model: LocalLearning, meters: Mapping[str, Callable[[], float]], **options: Any
    ) -> dict[str, float]:
        """What meters gain per step through Lightning, with both loggers writing once.

        Args:
            model: what is trained.
            meters: name → what reads it.
            options: more arguments of the Trainer.
        """
        clock = Clock(meters, self._measured)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._make_trainer(
                logger=[RunTensorBoardLogger(Path(folder)), RunCSVLogger(Path(folder))],
                callbacks=[clock],
                max_steps=self._all_steps,
                log_every_n_steps=self.steps,
                **options,
            )
            trainer.fit(model, datamodule=self.batches)
        return clock.per_step

    def plain_step_seconds(self, model: LocalLearning) -> float:
        """Seconds per step of a bare loop on one ready batch."""
        steps = plain_steps(model.to(self.device), self.sample)
        return self.per_plain_step(partial(next, steps), {"seconds": partial(now, self.device)})["seconds"]

    def per_plain_step(self, step: Callable[[], object], meters: Mapping[str, Callable[[], float]]) -> dict[str, float]:
        """What meters gain per step of a bare loop."""
        clock = Clock(meters, self._measured)
        with self._autocast():
            for number in range(1, self._measured.stop + 1):
                step()
                clock.after(number)
        return clock.per_step

    def part_seconds(self, model: LocalLearning) -> list[float]:
        """Seconds of a step in a bare loop that each part takes; one that does not learn counts with the next."""
        seconds, last = [0.0] * model.schedule.parts, now(self.device)

        def learned(k: int) -> None:
            nonlocal last
            moment = now(self.device)
            seconds[k] += moment - last
            last = moment

        steps = plain_steps(model.to(self.device), self.sample, learned)
        meters = {str(k): partial(seconds.__getitem__, k) for k in range(len(seconds))}
        return [*self.per_plain_step(partial(next, steps), meters).values()]

    def peak_bytes(self, model: LocalLearning) -> int:
        """Most activation bytes at one time in a step (the second: the first makes optimizer buffers)."""
        with self._autocast():
            step = plain_steps(model.to(self.device), self.sample)
            next(step)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                next(step)
                return torch.cuda.max_memory_allocated(self.device) - before
            with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
                next(step)
            return meter.peak


def plain_steps(model: LocalLearning, batch: Batch, learned: Callable[[int], None] = lambda k: None) -> Iterator[None]:
    """The method's training steps without Lightning: one per ``next``. ``learned`` is told of every part's update."""
    model.train()
    optimizers = [*map(model.part_optimizer, range(model.schedule.parts))]

    def backward_block(k: int, loss: torch.Tensor, retain_graph: bool = False) -> None:
        loss.backward(retain_graph=retain_graph)

    def step_block(k: int) -> None:
        optimizers[k].step()
        optimizers[k].zero_grad()
        learned(k)

    while True:
        # Only for this step: the same model also trains through Lightning.
        model.backward_block, model.step_block = backward_block, step_block  # type: ignore[method-assign] # on purpose
        model.count_step = _uncounted  # type: ignore[method-assign]
        try:
            model.training_step(batch, 0)
        finally:
            del model.backward_block, model.step_block, model.count_step
        yield


def _uncounted() -> None:
    """There is no Trainer that counts."""


def loader_speed(batches: RandomImages) -> float:
    """Images/s from the store in memory to an augmented, normalised batch, on one CPU thread."""
    with threads(1):
        return statistics.median(_images_per_second(batches, 0.2) for _ in range(5))


def _images_per_second(batches: RandomImages, seconds: float) -> float:
    count, start = 0, now()
    while now() - start < seconds:
        for batch in batches.train_dataloader():
            count += len(batches.on_after_batch_transfer(batch, 0).images)
    return count / (now() - start)
