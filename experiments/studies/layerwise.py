"""Time and memory of every block that learns alone, with and without a feature store, beside backpropagation.

    python -m experiments.studies.layerwise --network resnet32 --blocks 8 --repetitions 5

Random 32×32 images, cut by activation bytes, whole steps through Lightning. All are timed in turns.
"""

import argparse
import logging
import statistics
import time
import warnings
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from rich.console import Console
from rich.table import Table
from torch.optim import SGD

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.images import MemoryImages
from experiments.measure.allocator import keep_freed_memory
from models.local_learning import LocalLearning
from models.methods.backprop import Backprop
from models.methods.layerwise import Layerwise
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG, VGG8b
from models.parts.feature_store import FeatureStore

NETWORKS = {
    "equal8": partial(VGG, plan=(32,) * 8),
    "resnet32": partial(CifarResNet, depth=32),
    "vgg8b": VGG8b,
}


HEADS = {"1c2f": AuxHead, "linear": LinearHead}


class RandomImages(ImageDataModule):
    """Random 32×32 images in memory, in 10 classes."""

    num_classes, image_shape = 10, (3, 32, 32)
    mean, std = (0.5,) * 3, (0.25,) * 3
    images = 0

    def load(self, train: bool) -> MemoryImages:
        """As many as asked for, and some for validation, which are not used."""
        count = self.images * 10 // 9 + 100
        return MemoryImages(torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8), torch.arange(count) % 10)


class StepTimes(L.Callback):
    """Seconds of every step, in lists by epoch; the first step of an epoch is not counted but noted apart."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.first: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """A new list."""
        self.steps.append([])
        self._last = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time since the end of the step before."""
        now = time.perf_counter()
        self.steps[-1].append(now - self._last)
        self._last = now

    def medians(self) -> list[float]:
        """Median step of every epoch but for its first."""
        return [statistics.median(epoch[1:]) for epoch in self.steps]

    def firsts(self) -> list[float]:
        """The first step of every epoch, in which a store is filled."""
        return [epoch[0] for epoch in self.steps]


class Peaks(L.Callback):
    """Most activation bytes that autograd holds in the second step of every epoch."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, number: int) -> None:
        """Begin to count."""
        if number == 1:
            self._meter = SavedTensorMeter([*pl_module.parameters(), *pl_module.buffers()]).__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        """End."""
        if arguments[-1] == 1:
            self._meter.__exit__(None, None, None)
            self.peaks.append(self._meter.peak)


def train(model: LocalLearning, batch_size: int, steps: int, epochs: int, watch: L.Callback) -> None:
    """Train for epochs of so many steps."""
    data = RandomImages(batch_size=batch_size, augment=Augment(pad=4, flip=True))
    data.images = steps * batch_size
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(model, datamodule=data)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m experiments.studies.layerwise", description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="resnet32")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--head", choices=HEADS, default="1c2f")
    parser.add_argument(
        "--recompute", action="store_true", help="what is cheap behind convolutions, in the backward pass"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="per block and repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args()
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
    common = {"optimizer": partial(SGD, lr=0.01, momentum=0.9), "image_shape": (3, 32, 32), "num_classes": 10}
    layerwise = partial(
        Layerwise,
        NETWORKS[asked.network],
        num_blocks=asked.blocks,
        cut=Cut(by="activation_bytes"),
        epochs_per_block=1,
        head=HEADS[asked.head],
        recompute=asked.recompute,
        **common,
    )
    makers = {
        "backprop": (partial(Backprop, NETWORKS[asked.network], **common), 1),
        "computed": (layerwise, asked.blocks),
        "stored": (partial(layerwise, store=FeatureStore()), asked.blocks),
    }
    peaks: dict[str, list[int]] = {}
    for name in ("backprop", "computed"):
        make, epochs = makers[name]
        train(make(), asked.batch_size, 2, epochs, watch := Peaks())
        peaks[name] = watch.peaks
    times: dict[str, list[list[float]]] = {name: [] for name in makers}
    firsts: list[list[float]] = []
    for _ in range(asked.repetitions):
        for name, (make, epochs) in makers.items():
            train(make(), asked.batch_size, asked.steps + 1, epochs, watch := StepTimes())
            times[name].append(watch.medians())
            if name == "stored":
                firsts.append(watch.firsts())
    show(asked, times, firsts, peaks)


def show(
    asked: argparse.Namespace,
    times: dict[str, list[list[float]]],
    firsts: list[list[float]],
    peaks: dict[str, list[int]],
) -> None:
    """Print one row per block: medians over the repetitions, ratios of each repetition first."""
    images = (asked.steps + 1) * asked.batch_size
    table = Table(
        title=f"{asked.network}, K = {asked.blocks}, batch {asked.batch_size}, {torch.get_num_threads()} threads"
    )
    for heading in (
        "block",
        "computed, ms",
        "× backprop",
        "stored, ms",
        "× backprop",
        "filling, ms / image",
        "peak, MiB",
        "× backprop",
    ):
        table.add_column(heading, justify="right")
    whole = [repetition[0] for repetition in times["backprop"]]
    for k in range(asked.blocks):
        cells = [str(k + 1)]
        for name in ("computed", "stored"):
            own = [repetition[k] for repetition in times[name]]
            cells.append(f"{1000 * statistics.median(own):.1f}")
            cells.append(f"{statistics.median(a / b for a, b in zip(own, whole, strict=True)):.3f}")
        filling = statistics.median(first[k] - steps[k] for first, steps in zip(firsts, times["stored"], strict=True))
        cells.append(f"{1000 * filling / images:.2f}" if k else "–")
        cells += [f"{peaks['computed'][k] / 2**20:.1f}", f"{peaks['computed'][k] / peaks['backprop'][0]:.3f}"]
        table.add_row(*cells)
    Console(width=max(110, Console().width)).print(table)
    print(
        f"backprop: {1000 * statistics.median(whole):.1f} ms / step, {peaks['backprop'][0] / 2**20:.1f} MiB; "
        f"medians of {asked.repetitions} repetitions of {asked.steps} steps, in turns"
    )


if __name__ == "__main__":
    main()
