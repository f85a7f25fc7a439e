"""Blocks apart and a pipeline on a throttled link, beside the same on a free one.

    python -m experiments.studies.throttled_link --rate 1gbit --repetitions 5

Decoupled greedy learning of ResNet-32 in two blocks, and its backpropagation in two stages, batch 128 of 32×32 images:
two processes of one thread in two network namespaces, a pair of virtual interfaces between them. Needs Linux, root, and
``ip`` and ``tc``. The link is throttled and freed in turns, both ways.
"""

import argparse
import logging
import os
import signal
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch.optim import SGD

from datamodules.cifar import CIFAR10
from experiments.distributed.ddp import DDP
from experiments.distributed.team import APART, Figures, Team, slowest
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.silent import silent_trainer
from experiments.measure.turns import in_turns, median_ratio
from experiments.run import tables
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.cut import Cut
from models.networks.resnet import CifarResNet

LINK = "link0"
"""Name of the interface of each namespace."""


@contextmanager
def two_namespaces() -> Iterator[list[str]]:
    """Two network namespaces with a link between them: their names."""
    names = [f"bench{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run("ip", "-n", names[0], "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", names[1])
        for number, name in enumerate(names):
            _run("ip", "-n", name, "address", "add", f"10.79.0.{number + 1}/24", "dev", LINK)
            for interface in ("lo", LINK):
                _run("ip", "-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def on_both(names: list[str]) -> int:
    """Run this command again in both namespaces; the largest exit status."""
    processes = []
    for number, name in enumerate(names):
        meeting = {"MASTER_ADDR": "10.79.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": LINK}
        place = {"NODE_RANK": str(number), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
        command = [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "experiments.studies.throttled_link",
            *sys.argv[1:],
        ]
        processes.append(subprocess.Popen(command, env=os.environ | meeting | place))
    try:
        return max(process.wait() for process in processes)
    finally:
        for process in processes:
            process.kill()  # nothing, after its end


def at_rate(rate: str | None, measure: Callable[[], Figures]) -> float:
    """Seconds of a step of the slowest process; what each sends is throttled, unless the rate is None."""
    queue = ["tbf", "rate", rate, "burst", "1mb", "latency", "50ms"] if rate else ["pfifo"]
    _run("tc", "qdisc", "replace", "dev", LINK, "root", *queue)
    return slowest(measure())


def measured(rate: str, depth: int, steps: int, repetitions: int, schedule: str, micro_batches: int) -> None:
    """One of the two processes; the first prints a table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    keep_freed_memory()
    task = partial(CifarResNet, depth=depth), (3, 32, 32), 10, 2, Cut(by="macs")
    model = DecoupledGreedy(*task, optimizer=partial(SGD, lr=0.01, momentum=0.9, nesterov=True, fused=True))
    strategy = DDP()
    trainer = silent_trainer(accelerator="cpu", devices=1, num_nodes=2, strategy=strategy)
    strategy.setup_environment()
    team = Team(model, CIFAR10(batch_size=128), trainer, steps)
    ways = {
        APART: team.contenders()[APART],
        f"{schedule}, {micro_batches} micro-batches": team.pipeline(schedule, micro_batches),
    }
    turns = {(name, at): partial(at_rate, at, way) for name, way in ways.items() for at in (None, rate)}
    found = in_turns(turns, repetitions)
    rows = [
        (
            name,
            *(f"{1000 * statistics.median(found[name, at]):.1f}" for at in (None, rate)),
            f"{median_ratio(found[name, rate], found[name, None]):.3f}",
        )
        for name in ways
    ]
    if trainer.global_rank == 0:
        tables.show(("", "free, ms", f"{rate}, ms", f"{rate} / free"), rows, words=[""])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--schedule", default="1F1B")
    parser.add_argument("--micro_batches", type=int, default=8)
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        measured(**vars(options))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of the removal
    with two_namespaces() as names:
        raise SystemExit(on_both(names))


if __name__ == "__main__":
    main()
