"""Time of a training step beside a plain loop that does the same work.

    python -m experiments.studies.step_time --repetitions 11

Random 28×28 images; one thread, no loader, no Lightning; in turns. Forward-Forward: 784-1000-1000-1000, hard negatives,
peer normalisation. Self-defined targets: 784-2000. Both with their published batch and optimizer.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import SGD

from datamodules.batch import Batch
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.turns import in_turns, median_ratio, seconds, threads
from experiments.measure.workbench import plain_steps
from experiments.run import tables
from experiments.studies.plain_forward_forward import PlainForwardForward
from experiments.studies.plain_self_defined_target import PlainSelfDefinedTarget
from losses.winners import WinnerTakeAll
from models.methods.forward_forward import ForwardForward
from models.methods.self_defined_target import SelfDefinedTarget
from models.networks.mlp import MLP

HEADINGS = ("method", "network", "batch", "plain loop, ms", "ours, ms", "ours / plain loop")


class Pair(NamedTuple):
    """Two that do the same work, each one step per call."""

    method: str
    network: str
    batch: int
    plain: Callable[[], object]
    ours: Callable[[], object]


def forward_forward() -> Pair:
    """Layers with labels in their input."""
    batch, widths = random_batch(100), [1000, 1000, 1000]
    sgd = partial(SGD, lr=0.01, momentum=0.9, dampening=0.9, weight_decay=1e-3, fused=True)
    network = partial(MLP, hidden=widths, batch_norm=False)
    model = ForwardForward(network, (1, 28, 28), 10, num_blocks=len(widths), optimizer=sgd)
    layers = [nn.Linear(*pair) for pair in zip([784, *widths], widths, strict=False)]
    loop = PlainForwardForward(layers, nn.Linear(sum(widths[1:]), 10, bias=False), sgd, sgd)
    plain = partial(loop.step, batch.images, batch.labels)
    return Pair("ForwardForward", "784-1000-1000-1000", 100, plain, partial(next, plain_steps(model, batch)))


def self_defined_target() -> Pair:
    """One layer of outputs."""
    batch, sgd = random_batch(16), partial(SGD, lr=8.0, fused=True)
    network, target = partial(MLP, hidden=[], input_dropout=0.3), partial(WinnerTakeAll, dropout=0.2)
    model = SelfDefinedTarget(network, (1, 28, 28), 10, target=target, optimizer=sgd)
    plain = partial(PlainSelfDefinedTarget(nn.Linear(784, 2000), sgd).step, batch.images)
    return Pair("SelfDefinedTarget", "784-2000", 16, plain, partial(next, plain_steps(model, batch)))


def random_batch(images: int) -> Batch:
    """Noise with labels."""
    return Batch(torch.rand(images, 1, 28, 28), torch.randint(10, (images,)))


def measured(pair: Pair, steps: int, repetitions: int) -> Iterator[str]:
    """The cells of a pair's row."""

    def go(step: Callable[[], object]) -> None:
        for _ in range(steps):
            step()

    both = {"plain": partial(go, pair.plain), "ours": partial(go, pair.ours)}
    with threads(1):
        for work in both.values():
            work()
        times = in_turns({name: partial(seconds, work) for name, work in both.items()}, repetitions)
    yield from (pair.method, pair.network, str(pair.batch))
    yield from (f"{1000 * statistics.median(times[name]) / steps:.2f}" for name in both)
    yield f"{median_ratio(times['ours'], times['plain']):.3f}"


def main() -> None:
    """Measure, and print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of each repetition")
    parser.add_argument("--repetitions", type=int, default=11)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = [[*measured(pair(), options.steps, options.repetitions)] for pair in (forward_forward, self_defined_target)]
    for line in tables.markdown_lines(HEADINGS, rows):
        print(line)


if __name__ == "__main__":
    main()
