"""Time to a given accuracy: blocks of p units, one after the other, beside all units at once, backpropagation.

    python -m experiments.studies.partitions digits partitions_digits.jsonl
    python -m experiments.studies.partitions fashion_mnist partitions_fashion_mnist.jsonl --root data --seeds 0

Each p trains with the same batches as backpropagation, and with those that fill backpropagation's memory, of which
``cost`` prints the sizes; the learning rate then grows with the smallest of them. Features of frozen blocks are stored.
Time is that of the processor (``time.process_time``, one thread), in which other programs do not count: training,
loading and filling the store, without validation. A target is reached after the first epoch with that validation top-1.
All that is trained for one seed is trained in turns in one process, and compared with that seed's backpropagation. Runs
are kept in the file of JSON lines, to which another call adds further seeds.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from typing_extensions import override

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from datamodules.digits import Digits
from datamodules.mnist import FashionMNIST
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.cost import equal_memory_batches, network_cost
from experiments.measure.silent import silent_trainer
from experiments.run import tables
from models.methods.layerwise import Layerwise
from models.networks.chain import Chain
from models.networks.vgg import VGG
from models.parts.feature_store import FeatureStore


class Task(NamedTuple):
    """What is trained, as the configs of ``layerwise/`` have it, and the values of p; the last is all units."""

    data: type[ImageDataModule]
    augment: Augment
    batch_size: int
    network: Callable[..., Chain]
    units: Sequence[int]
    epochs: int
    weight_decay: float
    passes: int
    targets: Sequence[float]


TASKS = {
    "digits": Task(
        Digits,
        Augment(pad=1),
        64,
        partial(VGG, plan=(32, 32, "M", 64, 64, "M", 128, 128)),
        (1, 2, 4, 6),
        5,
        1e-4,
        2,
        (0.9, 0.95),
    ),
    "fashion_mnist": Task(
        FashionMNIST,
        Augment(),
        128,
        partial(VGG, plan=(16, "M", 32, "M", 64, "M", 128)),
        (1, 2, 4),
        1,
        5e-4,
        1,
        (0.8, 0.85),
    ),
}
RATE = 0.05


@dataclass
class Run:
    """One training.

    Attributes:
        units: p.
        filled: whether its batches fill backpropagation's memory.
        seed: of weights and batches.
        batch_sizes: of block after block.
        rate: learning rate.
        curve: after every epoch processor seconds of training so far, and validation top-1 of the block that learns.
        test: top-1 at the end.
    """

    units: int
    filled: bool
    seed: int
    batch_sizes: list[int]
    rate: float
    curve: list[tuple[float, float]] = field(default_factory=list)
    test: float = 0.0

    def seconds_to(self, target: float) -> float | None:
        """Time up to the first epoch with that validation top-1; None if there is none."""
        return next((seconds for seconds, top1 in self.curve if top1 >= target), None)


class Watch(L.Callback):
    """Notes processor seconds and accuracy of every epoch."""

    def __init__(self, run: Run) -> None:
        self.run, self._seconds = run, 0.0

    @override
    def on_train_epoch_start(self, *_: Any) -> None:
        self._began = time.process_time()

    @override
    def on_validation_start(self, *_: Any) -> None:
        self._seconds += time.process_time() - self._began

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.run.curve.append((self._seconds, float(trainer.callback_metrics["val/top1"])))


def train(task: Task, root: str, units: int, filled: bool, seed: int) -> Run:
    """Train blocks of so many units, with the batches of backpropagation or with those that fill its memory."""
    make = partial(
        Layerwise,
        task.network,
        task.data.image_shape,
        task.data.num_classes,
        units_per_block=units,
        epochs_per_block=task.epochs,
        scheduler=partial(CosineAnnealingLR, T_max=task.epochs),
        store=FeatureStore(task.passes),
    )
    model = make()
    sizes = equal_memory_batches(model, network_cost(model, task.batch_size)) if filled else {0: task.batch_size}
    run = Run(units, filled, seed, [*sizes.values()], RATE * min(sizes.values()) / task.batch_size)
    L.seed_everything(seed, verbose=False)
    model = make(
        optimizer=partial(SGD, lr=run.rate, momentum=0.9, nesterov=True, weight_decay=task.weight_decay, fused=True)
    )
    data = task.data(root, task.batch_size, task.augment, seed=seed, batch_sizes=sizes)
    trainer = silent_trainer(
        accelerator="cpu",
        max_epochs=model.schedule.epochs,
        limit_val_batches=1.0,
        num_sanity_val_steps=0,
        callbacks=[Watch(run)],
    )
    trainer.fit(model, datamodule=data)
    run.test = trainer.test(model, datamodule=data, verbose=False)[0]["test/top1"]
    return run


def rows(runs: Sequence[Run], targets: Sequence[float]) -> Iterator[list[str]]:
    """One per p and kind of batches: means over the seeds; times over those of the same seed's backpropagation."""
    whole = max(run.units for run in runs)
    base = {run.seed: run for run in runs if run.units == whole}
    compared = [run for run in runs if run.seed in base]
    for units, filled in sorted({(run.units, run.filled) for run in compared}):
        alike = [run for run in compared if (run.units, run.filled) == (units, filled)]
        yield [
            "all" if units == whole else str(units),
            ", ".join(map(str, alike[0].batch_sizes)),
            f"{alike[0].rate:.3f}",
            _mean([100 * run.curve[-1][1] for run in alike]),
            _mean([100 * run.test for run in alike]),
            _ratio([(run.curve[-1][0], base[run.seed].curve[-1][0]) for run in alike]),
            *(_ratio([(run.seconds_to(one), base[run.seed].seconds_to(one)) for run in alike]) for one in targets),
        ]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _ratio(times: Sequence[tuple[float | None, float | None]]) -> str:
    """Median of each seed's own ratio, and in brackets the median seconds; a dash if a seed never got there."""
    known = [(own, base) for own, base in times if own is not None and base is not None]
    if len(known) < len(times):
        return tables.NOTHING
    own = statistics.median(seconds for seconds, _ in known)
    return f"{statistics.median(a / b for a, b in known):.2f} ({own:.1f} s)"


def read(file: Path) -> list[Run]:
    """The runs in a file; none if there is no file yet."""
    return [Run(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


def main() -> None:
    """Train what the file does not hold yet, and print the table of all that it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("file", type=Path, help="JSON lines, one a run")
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = parser.parse_args()
    task, kept = TASKS[asked.task], read(asked.file)
    keep_freed_memory()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(treespec|does not have many workers).*")
    wanted = [(p, filled, seed) for seed in asked.seeds for filled in (True, False) for p in reversed(task.units)]
    done = {(run.units, run.filled, run.seed) for run in kept}
    for units, filled, seed in wanted:
        if (units, filled, seed) in done or (filled and units == task.units[-1]):  # all units fill it as they are
            continue
        kept.append(train(task, asked.root, units, filled, seed))
        with asked.file.open("a") as file:
            file.write(json.dumps(asdict(kept[-1])) + "\n")
    seeds = ", ".join(map(str, sorted({run.seed for run in kept})))
    title = f"{asked.task}, {task.epochs} epochs a block, seeds {seeds}; times × backpropagation's"
    headings = ["p", "batches", "rate", "val top-1, %", "test top-1, %", "whole training"]
    print(title)
    print(tables.markdown([*headings, *(f"to {100 * one:g} %" for one in task.targets)], rows(kept, task.targets)))


if __name__ == "__main__":
    main()
