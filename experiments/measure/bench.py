"""``bench``: measured speed and memory of a method against backpropagation of the same network.

Everything is measured in one process, in turns, so that a noisy machine disturbs all alike; figures
are medians over the repetitions. One repetition trains ``steps`` batches through Lightning, loader,
augmentation and logging included, and times them after the first two.
"""

import json as json_format
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.images import MemoryImages
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.cost import network_cost
from experiments.measure.yardstick import end_to_end
from experiments.run.loggers import RunCSVLogger, RunTensorBoardLogger
from losses.errors import UsageError
from models.local_learning import LocalLearning
from models.networks.memory.saved_tensors import SavedTensorMeter

_WARM_UP = 2


@dataclass
class Figures:
    """What was measured of one way to train.

    Attributes:
        images_per_second: from the median step.
        step_seconds: median over the repetitions of the mean step.
        peak_activation_bytes: most bytes held for the backward pass at one time in a step.
    """

    images_per_second: float
    step_seconds: float
    peak_activation_bytes: int


@dataclass
class Bench:
    """All figures of a bench run.

    Attributes:
        images_per_second, step_seconds, peak_activation_bytes: of the method.
        backprop: of plain backpropagation of the same network.
        checkpointing: of backpropagation with gradient checkpointing, at the number of segments
            with the lowest peak.
        checkpointing_segments: that number.
        plain_loop: the method's own steps in a bare Python loop on one ready batch: no Lightning,
            no loader, no logging.
        ratios: the method over backpropagation (``step_over_backprop``, ``memory_over_backprop``),
            checkpointing over backpropagation, ``step_over_prediction``: the step over what its
            MACs predict from backpropagation's step, and ``lightning_overhead``: the step over the
            plain loop's, minus 1. Ratios of times are medians of the repetitions' own ratios.
        loader: images/s of loading and augmentation alone, on one thread.
        settings: network, batch size, threads, precision, machine and allocator.
    """

    images_per_second: float
    step_seconds: float
    peak_activation_bytes: int
    backprop: Figures
    checkpointing: Figures
    checkpointing_segments: int
    plain_loop: Figures
    ratios: dict[str, float]
    loader: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)


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

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches."""
        return self._data.training_loader(self._images, self._data.epochs_of(self._images), num_workers=0)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment and normalise, or make views, as the data module does."""
        return self._data.training_batch(batch)


class _Clock(L.Callback):
    """Mean seconds per step of one repetition, warm-up left out."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == _WARM_UP:
            self._start = _now(pl_module.device)
        if trainer.global_step == trainer.max_steps:
            self.step_seconds = (_now(pl_module.device) - self._start) / (trainer.max_steps - _WARM_UP)


def bench(model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, steps: int, repetitions: int) -> Bench:
    """Measure a method against backpropagation and against gradient checkpointing.

    Args:
        model: the method.
        data: gives image shape, batch size and augmentation.
        trainer: gives device and precision.
        steps: training steps per repetition, above the warm-up.
        repetitions: alternating repetitions of each contender.

    Raises:
        UsageError: the blocks learn one after the other.
    """
    if model.schedule.epochs_per_block:
        raise UsageError(
            "bench measures a step in which all blocks learn. For blocks that learn one after the other see cost, and "
            "python -m experiments.studies.layerwise"
        )
    place = _Workbench(data, trainer, steps)
    segments = _leanest_segments(model, place)
    contenders = {"checkpointing": end_to_end(model, segments), "backprop": end_to_end(model), "method": model}
    seconds: dict[str, list[float]] = {name: [] for name in [*contenders, "plain_loop"]}
    peaks = {name: place.peak_bytes(contender) for name, contender in contenders.items()}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            seconds[name].append(place.step_seconds(contender))
        seconds["plain_loop"].append(place.plain_step_seconds(model))

    def figures(name: str) -> Figures:
        median = statistics.median(seconds[name])
        return Figures(data.batch_size / median, median, peaks.get(name, peaks["method"]))

    return Bench(
        **asdict(figures("method")),
        backprop=figures("backprop"),
        checkpointing=figures("checkpointing"),
        checkpointing_segments=segments,
        plain_loop=figures("plain_loop"),
        ratios=_ratios(seconds, peaks, network_cost(model, data.batch_size, "plain").predicted_step_ratio),
        loader={"images_per_second_one_core": _loader_speed(place.batches)},
        settings={
            "network": model.network_name,
            "num_blocks": model.num_blocks,
            "num_groups": model.num_groups,
            "batch_size": data.batch_size,
            "steps": steps,
            "repetitions": repetitions,
            "device": "cpu" if place.device.type == "cpu" else torch.cuda.get_device_name(place.device),
            "precision": str(trainer.precision),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "allocator": "freed memory kept (mallopt)" if keep_freed_memory() else "the system's default allocator",
        },
    )


def _leanest_segments(model: LocalLearning, place: "_Workbench") -> int:
    """The number of checkpointing segments with the lowest peak; it is near the root of the number of units."""
    units = sum(len(block) for block in model.blocks)
    candidates = range(2, min(units, 2 * isqrt(units) + 1) + 1) if units > 1 else [1]
    return min(candidates, key=lambda segments: place.peak_bytes(end_to_end(model, segments)))


def _ratios(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, int], predicted: float) -> dict[str, float]:
    def over(name: str, base: str) -> float:
        # Of each repetition, then the median: a machine that gets slower meanwhile disturbs neighbours alike.
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))

    return {
        "step_over_backprop": over("method", "backprop"),
        "predicted_step_over_backprop": predicted,
        "step_over_prediction": over("method", "backprop") / predicted,
        "memory_over_backprop": peaks["method"] / peaks["backprop"],
        "checkpointing_step_over_backprop": over("checkpointing", "backprop"),
        "checkpointing_memory_over_backprop": peaks["checkpointing"] / peaks["backprop"],
        "lightning_overhead": over("method", "plain_loop") - 1,
    }


class _Workbench:
    """One device, one precision, one store of images: where all contenders are measured alike."""

    def __init__(self, data: ImageDataModule, trainer: L.Trainer, steps: int) -> None:
        self.device, self.steps = trainer.strategy.root_device, steps
        self.batches = RandomImages(data, steps + _WARM_UP)
        sample = next(iter(self.batches.train_dataloader()))
        self._sample = self.batches.on_after_batch_transfer(move_data_to_device(sample, self.device), 0)
        self._autocast = trainer.precision_plugin.train_step_context
        self._make_trainer = partial(
            L.Trainer,
            accelerator=self.device.type,
            devices=1,
            precision=trainer.precision,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )

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
            start = _now(self.device)
            for _ in range(self.steps):
                next(step)
            return (_now(self.device) - start) / self.steps

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


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
        model.backward_block, model.step_block = backward_block, step_block
        try:
            model.training_step(batch, 0)
        finally:
            del model.backward_block, model.step_block
        yield


def _loader_speed(batches: RandomImages, seconds: float = 1.0) -> float:
    """Images/s from the store in memory to an augmented, normalised batch, on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = []
        for _ in range(5):
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds / 5:
                for batch in batches.train_dataloader():
                    count += len(batches.on_after_batch_transfer(batch, 0).images)
            rates.append(count / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(rates)


def show_bench(result: Bench, json: bool) -> None:
    """Print the figures as a table, or as JSON."""
    if json:
        print(json_format.dumps(asdict(result), indent=2))
        return
    settings = result.settings
    table = Table(
        title=f"{settings['network']}, K = {settings['num_blocks']}, G = {settings['num_groups']}, "
        f"batch {settings['batch_size']}, {settings['device']}, {settings['threads']} threads",
        title_justify="left",
    )
    for heading in ("", "images/s", "ms / step", "× backprop", "peak MiB", "× backprop"):
        table.add_column(heading, justify="right" if heading else "left")
    ratios, base = result.ratios, result.backprop
    plain = ratios["step_over_backprop"] / (1 + ratios["lightning_overhead"])
    for name, row, ratio in (
        ("backprop", base, 1.0),
        (
            f"checkpointing, {result.checkpointing_segments} segments",
            result.checkpointing,
            ratios["checkpointing_step_over_backprop"],
        ),
        ("this method", result, ratios["step_over_backprop"]),
        ("this method, plain loop", result.plain_loop, plain),
    ):
        table.add_row(
            name,
            f"{row.images_per_second:.0f}",
            f"{1000 * row.step_seconds:.1f}",
            f"{ratio:.3f}",
            f"{row.peak_activation_bytes / 2**20:.1f}",
            f"{row.peak_activation_bytes / base.peak_activation_bytes:.3f}",
        )
    Console(width=max(100, Console().width)).print(table)
    print(
        f"step against its MACs   {ratios['step_over_prediction']:.3f} × the "
        f"{ratios['predicted_step_over_backprop']:.3f} that they predict\n"
        f"Lightning's own cost    {100 * ratios['lightning_overhead']:+.1f} % over the plain loop "
        "(loader, loop, logging)\n"
        f"loader alone            {result.loader['images_per_second_one_core']:,.0f} images/s on one core\n"
        f"{settings['allocator']}; medians of {settings['repetitions']} repetitions of {settings['steps']} steps, "
        "in turns." + (" Too few to trust." if settings["repetitions"] * settings["steps"] < 15 else "")
    )
