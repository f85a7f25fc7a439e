"""Is a simulated step as long as a real one? Blocks of ResNet-32 on processes of their own, predicted and then timed.

    python -m experiments.studies.simulated --blocks 2
    python -m experiments.studies.simulated --blocks 4 --processes 2

All is done in turns, with the processes of the run, one thread each: blocks are measured in all of them at once, one
process trains alone, and all train together through Lightning, with the strategy ``block_parallel``. Their step is that
of the slowest, to the moment when nothing is under way any more. On a machine that others use, ``--processor`` counts
processor seconds instead: other programs do not count then, and waiting does not either.
"""

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.multiprocessing as mp
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.optim import SGD

from datamodules.cifar import CIFAR10
from experiments.distributed.block_parallel import BlockParallel
from experiments.measure import turns
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.prediction import measure, predict
from experiments.measure.silent import silent_trainer
from experiments.measure.workbench import Workbench
from experiments.run import tables
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.cut import Cut
from models.networks.resnet import CifarResNet

HEADINGS = (
    "",
    "backprop, ms",
    "one process, ms",
    "all together, ms",
    "predicted, ms",
    "predicted / measured",
    "× one process",
)


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2, metavar="K")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="of a repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--processor", action="store_true", help="count processor seconds")
    options = parser.parse_args()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    mp.start_processes(work, (options,), nprocs=options.processes, start_method="spawn")


def work(rank: int, options: argparse.Namespace) -> None:
    """What each process does; the first one prints a row for every repetition."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.processor:
        turns.clock = time.process_time
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = CIFAR10(batch_size=options.batch)
    model = DecoupledGreedy(
        partial(CifarResNet, depth=32),
        data.image_shape,
        data.num_classes,
        options.blocks,
        Cut(by="macs"),
        optimizer=partial(SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True),
    )
    for line in tables.markdown_lines(HEADINGS, _rows(model, data, options)):
        if rank == 0:
            print(line, flush=True)
    torch.distributed.destroy_process_group()


def _rows(model: DecoupledGreedy, data: CIFAR10, options: argparse.Namespace) -> Iterator[list[str]]:
    """One per repetition, and their medians."""
    found: list[list[float]] = []
    for number in range(1, options.repetitions + 1):
        found.append(turn(model, data, options))
        yield _cells(str(number), found[-1])
    yield _cells("median", [statistics.median(column) for column in zip(*found, strict=True)])


def _cells(name: str, row: Sequence[float]) -> list[str]:
    return [name, *(f"{x:.1f}" for x in row[:4]), *(f"{x:.3f}" for x in row[4:])]


def turn(model: DecoupledGreedy, data: CIFAR10, options: argparse.Namespace) -> list[float]:
    """One repetition: milliseconds of backpropagation, one process, all together, predicted; their ratios."""
    several = {"devices": options.processes, "use_distributed_sampler": False}
    trainer = silent_trainer(accelerator="cpu", strategy="ddp", **several)
    measured = measure(model, data, trainer, repetitions=1)
    prediction = predict(measured, options.processes)
    strategy = BlockParallel(first_blocks=[first for first, _ in prediction.blocks])
    place = Workbench(data, trainer, options.steps)
    found = place.per_step(model, {"seconds": turns.now}, strategy=strategy, **several)
    seconds = torch.tensor(found["seconds"])
    torch.distributed.all_reduce(seconds, torch.distributed.ReduceOp.MAX)
    alone, real, predicted = measured.one_process_seconds, float(seconds), prediction.step_seconds
    times = [1000 * one for one in (measured.backprop_seconds, alone, real, predicted)]
    return [*times, predicted / real, alone / real]


if __name__ == "__main__":
    main()
