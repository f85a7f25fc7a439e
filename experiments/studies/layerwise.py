"""Time and memory of every block that learns alone, with and without a feature store, beside backpropagation.

    python -m experiments.studies.layerwise --network resnet32 --blocks 8 --repetitions 5

Random 32×32 images, cut by activation bytes, whole steps through Lightning. All are timed in turns. Of every epoch the
first step, in which a store is filled, and the second, whose activation bytes are counted, are no timed ones.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch.optim import SGD
from typing_extensions import override

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.images import MemoryImages
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.silent import silent_trainer
from experiments.measure.turns import in_turns, median_ratio, now
from experiments.run import tables
from models.local_learning import LocalLearning
from models.methods.backprop import Backprop
from models.methods.layerwise import Layerwise
from models.networks.chain import Chain
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG, VGG8b
from models.parts.feature_store import FeatureStore

NETWORKS: Mapping[str, Callable[..., Chain]] = {
    "equal8": partial(VGG, plan=(32,) * 8),
    "resnet32": partial(CifarResNet, depth=32),
    "vgg8b": VGG8b,
}
HEADS = {"1c2f": AuxHead, "linear": LinearHead}
UNTIMED = 2


class RandomImages(ImageDataModule):
    """Random 32×32 images in memory, in 10 classes: enough for the steps and some for validation."""

    num_classes, image_shape = 10, (3, 32, 32)
    mean, std = (0.5,) * 3, (0.25,) * 3

    def __init__(self, batch_size: int, steps: int) -> None:
        super().__init__(batch_size=batch_size, augment=Augment(pad=4, flip=True))
        self._count = steps * batch_size * 10 // 9 + 100

    @override
    def load(self, train: bool) -> MemoryImages:
        images = torch.randint(256, (self._count, 32, 32, 3), dtype=torch.uint8)
        return MemoryImages(images, torch.arange(self._count) % 10)


class Epoch(NamedTuple):
    """Seconds of a step (median), what the first one took more, and the peak of activation bytes."""

    step: float
    filling: float
    peak: int


class Watch(L.Callback):
    """Measures the epochs of a training."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []

    @override
    def on_train_epoch_start(self, *_: Any) -> None:
        self._seconds: list[float] = []
        self._last = now()

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if len(self._seconds) == 1:
            self._meter = SavedTensorMeter([*pl_module.parameters(), *pl_module.buffers()]).__enter__()

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        if len(self._seconds) == 1:
            self._meter.__exit__()
        self._seconds.append(now() - self._last)
        self._last = now()

    @override
    def on_train_epoch_end(self, *_: Any) -> None:
        median = statistics.median(self._seconds[UNTIMED:])
        self.epochs.append(Epoch(median, self._seconds[0] - median, self._meter.peak))


def train(make: Callable[[], LocalLearning], epochs: int, batch_size: int, steps: int) -> list[Epoch]:
    """Epochs of so many steps, measured."""
    watch = Watch()
    trainer = silent_trainer(accelerator="cpu", max_epochs=epochs, limit_train_batches=steps, callbacks=[watch])
    trainer.fit(make(), datamodule=RandomImages(batch_size, steps))
    return watch.epochs


def contenders(asked: argparse.Namespace) -> dict[str, Callable[[], list[Epoch]]]:
    """Backpropagation, and block after block on features that are computed or stored."""
    task: dict[str, Any] = {"network": NETWORKS[asked.network], "image_shape": (3, 32, 32), "num_classes": 10}
    task["optimizer"] = partial(SGD, lr=0.01, momentum=0.9)
    layerwise = partial(
        Layerwise,
        num_blocks=asked.blocks,
        cut=Cut(by="activation_bytes"),
        epochs_per_block=1,
        head=HEADS[asked.head],
        recompute=asked.recompute,
        **task,
    )
    measured = partial(train, batch_size=asked.batch_size, steps=asked.steps + UNTIMED)
    return {
        "backprop": partial(measured, partial(Backprop, **task), 1),
        "computed": partial(measured, layerwise, asked.blocks),
        "stored": partial(measured, partial(layerwise, store=FeatureStore()), asked.blocks),
    }


HEADINGS = (
    "block",
    "computed, ms",
    "× backprop",
    "stored, ms",
    "× backprop",
    "filling, ms / image",
    "peak, MiB",
    "× backprop",
)


def show(asked: argparse.Namespace, measured: Mapping[str, Sequence[Sequence[Epoch]]]) -> None:
    """Print one row per block: medians over the repetitions, ratios of each repetition first."""
    images = (asked.steps + UNTIMED) * asked.batch_size
    whole, base = [epoch.step for [epoch] in measured["backprop"]], measured["backprop"][0][0].peak

    def row(k: int) -> Iterator[str]:
        yield str(k + 1)
        for name in ("computed", "stored"):
            own = [epochs[k].step for epochs in measured[name]]
            yield from (f"{1000 * statistics.median(own):.1f}", f"{median_ratio(own, whole):.3f}")
        filling = statistics.median(epochs[k].filling for epochs in measured["stored"])
        yield f"{1000 * filling / images:.2f}" if k else tables.NOTHING
        peak = measured["computed"][0][k].peak
        yield from (f"{peak / 2**20:.1f}", f"{peak / base:.3f}")

    title = f"{asked.network}, K = {asked.blocks}, batch {asked.batch_size}, {torch.get_num_threads()} threads"
    tables.show(HEADINGS, [[*row(k)] for k in range(asked.blocks)], title=title)
    print(
        f"backprop: {1000 * statistics.median(whole):.1f} ms / step, {base / 2**20:.1f} MiB; "
        f"medians of {asked.repetitions} repetitions of {asked.steps} steps, in turns"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet32")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--head", choices=HEADS, default="1c2f")
    parser.add_argument("--recompute", action="store_true", help="what is cheap behind convolutions, in backward")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="timed, per block and repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args()
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
    show(asked, in_turns(contenders(asked), asked.repetitions))


if __name__ == "__main__":
    main()
