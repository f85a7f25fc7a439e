"""What compressed gradients cost and save: two processes train one network with each hook in turns.

    python -m experiments.studies.communication
    python -m experiments.studies.communication --data FashionMNIST --root data --steps 200

One table row per hook: bits per parameter, bytes per step of one process, ratio to float32, and the time of a step as
the median over all steps: elapsed, and of the CPU in one process, which other work on the machine changes little.
Within a step the contenders take turns. The network between the processes is this machine's memory: on a slower one,
time also falls with the bytes that travel of float16, PowerSGD and mode ``true``; ``counting`` sends float32 and only
measures.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import datamodules
from datamodules.augment import normalise
from experiments.distributed.coders import FixedLength, Zlib
from experiments.distributed.entropy_coded import EntropyCoded
from experiments.distributed.hooks import CommunicationHook, HalfPrecision, PowerSGD, Uncompressed
from experiments.distributed.quantizer import ExplicitBits, FixedRef, Relative
from experiments.measure.allocator import keep_freed_memory
from experiments.run import tables
from models.networks.mlp import MLP

HOOKS: dict[str, Callable[[], CommunicationHook]] = {
    "none": Uncompressed,
    "float16": HalfPrecision,
    "PowerSGD, rank 2": lambda: PowerSGD(start=2),
    "coded, c = 0.5": lambda: EntropyCoded(FixedRef(0.5)),
    "coded, c = 1": EntropyCoded,
    "coded, c = 2": lambda: EntropyCoded(FixedRef(2)),
    "coded, c = 4": lambda: EntropyCoded(FixedRef(4)),
    "coded, c = 1, relative": lambda: EntropyCoded(Relative()),
    "coded, c = 2, relative": lambda: EntropyCoded(Relative(2)),
    "explicit bits, c = 1": lambda: EntropyCoded(ExplicitBits(), FixedLength()),
    "coded, c = 1, true": lambda: EntropyCoded(mode="true"),
    "coded, c = 1, zlib-9": lambda: EntropyCoded(coder=Zlib()),
}


PROCESSES = 2
HEADINGS = ("hook", "bits/parameter", "bytes/step", "ratio", "ms/step", "CPU ms/step", "× none")


class _Contender:
    """A replica that trains with one hook, and the clock of its steps."""

    def __init__(self, network: nn.Module, hook: CommunicationHook) -> None:
        self._model, self.hook = DistributedDataParallel(network), hook
        self._seconds: list[tuple[float, float]] = []
        hook.register(self._model)
        self._optimizer = SGD(self._model.parameters(), lr=0.05, momentum=0.9)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One training step."""
        dist.barrier()
        start, busy = time.perf_counter(), time.process_time()
        self._optimizer.zero_grad()
        cross_entropy(self._model(images), labels).backward()
        self._optimizer.step()
        self._seconds.append((time.perf_counter() - start, time.process_time() - busy))

    def medians(self) -> list[float]:
        """Seconds of a step: elapsed, and of the CPU."""
        return [statistics.median(column) for column in zip(*self._seconds, strict=True)]

    def cells(self, base: float) -> Iterator[str]:
        """What was sent, and the time of a step; ``base`` is the CPU time of one without a hook."""
        sent, (elapsed, cpu) = self.hook.summary(), self.medians()
        yield from (f"{sent['bits_per_parameter']:.2f}", f"{sent['bytes_per_step']:,.0f}", f"{sent['ratio']:.1f}")
        yield from (f"{1e3 * elapsed:.1f}", f"{1e3 * cpu:.1f}", f"{cpu / base:.2f}")


def batches(options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of this process, 64 at a time, epoch after epoch."""
    data = getattr(datamodules, options.data)(root=options.root)
    data.setup("fit")
    images, generator = data.training_images, torch.Generator().manual_seed(dist.get_rank())
    while True:
        for chosen in torch.randperm(len(images), generator=generator).split(64)[:-1]:
            batch = images.__getitems__(chosen)
            yield normalise(batch.images, data.mean, data.std), batch.labels


def work(rank: int, options: argparse.Namespace, folder: str) -> None:
    """One process: train all contenders side by side; the first prints the table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    source = batches(options)
    channels, height, width = next(source)[0].shape[1:]
    contenders = {}
    for name, make_hook in HOOKS.items():
        torch.manual_seed(0)
        network = MLP((channels, height, width), 10, [512, 256], batch_norm=False)
        contenders[name] = _Contender(network, make_hook())
    for step in range(options.steps):
        images, labels = next(source)
        for contender in contenders.values():
            contender.hook.calibrating = step < options.steps // 2
            contender.step(images, labels)
    if rank == 0:
        _, base = contenders["none"].medians()
        print(tables.markdown(HEADINGS, [[name, *contender.cells(base)] for name, contender in contenders.items()]))
    dist.destroy_process_group()


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="Digits", help="data set, a class of datamodules")
    parser.add_argument("--root", default="data")
    parser.add_argument("--steps", type=int, default=100)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (parser.parse_args(), folder), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
