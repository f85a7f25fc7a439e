"""Time and memory of every block that learns alone, with and without a feature store, beside backpropagation.

    python -m experiments.studies.layerwise --network resnet32 --blocks 8 --repetitions 5

Random 32×32 images, cut by activation bytes, whole steps through Lightning. All are timed in turns.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import lightning.pytorch as L
import torch
from torch.optim import SGD
from typing_extensions import override

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.images import MemoryImages
from experiments.measure.silent import silent_trainer
from experiments.measure.turns import in_turns, median_ratio, now
from experiments.run import tables
from experiments.studies.options import set_allocator, timing_parser
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

    @override
    def on_train_epoch_start(self, *_: Any) -> None:
        self.steps.append([])
        self._last = now()

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        self.steps[-1].append(now() - self._last)
        self._last = now()

    def medians(self) -> list[float]:
        """Median step of every epoch but for its first."""
        return [statistics.median(epoch[1:]) for epoch in self.steps]

    def filling(self) -> list[float]:
        """Seconds that the first step of every epoch, in which a store is filled, takes more than the others."""
        return [epoch[0] - median for epoch, median in zip(self.steps, self.medians(), strict=True)]


class Peaks(L.Callback):
    """Most activation bytes that autograd holds in the second step of every epoch."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            self._meter = SavedTensorMeter([*pl_module.parameters(), *pl_module.buffers()]).__enter__()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            self._meter.__exit__(None, None, None)
            self.peaks.append(self._meter.peak)


Watch = TypeVar("Watch", bound=L.Callback)


class Contender(NamedTuple):
    """A way to train, and over how many epochs."""

    make: Callable[[], LocalLearning]
    epochs: int

    def watched(self, watch: Callable[[], Watch], batch_size: int, steps: int) -> Watch:
        """Train epochs of so many steps; what watched it."""
        data = RandomImages(batch_size=batch_size, augment=Augment(pad=4, flip=True))
        data.images = steps * batch_size
        watching = watch()
        trainer = silent_trainer(
            accelerator="cpu", max_epochs=self.epochs, limit_train_batches=steps, callbacks=[watching]
        )
        trainer.fit(self.make(), datamodule=data)
        return watching


def contenders(asked: argparse.Namespace) -> dict[str, Contender]:
    """Backpropagation, and block after block on features that are computed or stored."""
    common: dict[str, Any] = {
        "optimizer": partial(SGD, lr=0.01, momentum=0.9),
        "image_shape": (3, 32, 32),
        "num_classes": 10,
    }
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
    return {
        "backprop": Contender(partial(Backprop, NETWORKS[asked.network], **common), 1),
        "computed": Contender(layerwise, asked.blocks),
        "stored": Contender(partial(layerwise, store=FeatureStore()), asked.blocks),
    }


def main() -> None:
    """Measure and print."""
    parser = timing_parser(__doc__, repetitions=5)
    parser.add_argument("--network", choices=NETWORKS, default="resnet32")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--head", choices=HEADS, default="1c2f")
    parser.add_argument(
        "--recompute", action="store_true", help="what is cheap behind convolutions, in the backward pass"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="per block and repetition")
    asked = parser.parse_args()
    set_allocator(asked)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*treespec.*is deprecated.*")
    ways, size = contenders(asked), asked.batch_size
    peaks = {name: ways[name].watched(Peaks, size, 2).peaks for name in ("backprop", "computed")}
    timed = {name: partial(way.watched, StepTimes, size, asked.steps + 1) for name, way in ways.items()}
    show(asked, in_turns(timed, asked.repetitions), peaks)


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


def show(
    asked: argparse.Namespace, times: Mapping[str, Sequence[StepTimes]], peaks: Mapping[str, Sequence[int]]
) -> None:
    """Print one row per block: medians over the repetitions, ratios of each repetition first."""
    images = (asked.steps + 1) * asked.batch_size
    whole = [repetition.medians()[0] for repetition in times["backprop"]]

    def row(k: int) -> Iterator[str]:
        yield str(k + 1)
        for name in ("computed", "stored"):
            own = [repetition.medians()[k] for repetition in times[name]]
            yield from (f"{1000 * statistics.median(own):.1f}", f"{median_ratio(own, whole):.3f}")
        filling = statistics.median(repetition.filling()[k] for repetition in times["stored"])
        yield f"{1000 * filling / images:.2f}" if k else tables.NOTHING
        yield from (f"{peaks['computed'][k] / 2**20:.1f}", f"{peaks['computed'][k] / peaks['backprop'][0]:.3f}")

    title = f"{asked.network}, K = {asked.blocks}, batch {asked.batch_size}, {torch.get_num_threads()} threads"
    tables.show(HEADINGS, [[*row(k)] for k in range(asked.blocks)], title=title)
    print(
        f"backprop: {1000 * statistics.median(whole):.1f} ms / step, {peaks['backprop'][0] / 2**20:.1f} MiB; "
        f"medians of {asked.repetitions} repetitions of {asked.steps} steps, in turns"
    )


if __name__ == "__main__":
    main()
