"""Time of a Forward-Forward step beside a plain loop that does the same work.

    python -m experiments.studies.forward_forward --widths 1000 1000 1000 --repetitions 11

Random 28×28 images, hard negatives, peer normalisation, SGD with momentum; one thread, no loader, no Lightning; in
turns.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import SGD

from datamodules.batch import Batch
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.turns import in_turns, median_ratio, seconds, threads
from experiments.measure.workbench import plain_steps
from experiments.run import tables
from experiments.studies.plain_forward_forward import PlainForwardForward
from models.methods.forward_forward import ForwardForward
from models.networks.mlp import MLP

sgd = partial(SGD, lr=0.01, momentum=0.9, dampening=0.9, weight_decay=1e-3, fused=True)
HEADINGS = ("network", "batch", "plain loop, ms", "ours, ms", "ours / plain loop")


def contenders(widths: list[int], batch: Batch, steps: int) -> dict[str, Callable[[], None]]:
    """Both, each going on for so many steps."""
    network = partial(MLP, hidden=widths, batch_norm=False)
    model = ForwardForward(network, (1, 28, 28), 10, num_blocks=len(widths), optimizer=sgd)
    layers = [nn.Linear(*pair) for pair in zip([784, *widths], widths, strict=False)]
    loop = PlainForwardForward(layers, nn.Linear(sum(widths[1:]), 10, bias=False), sgd, sgd)
    ours = plain_steps(model, batch)

    def go(step: Callable[[], object]) -> None:
        for _ in range(steps):
            step()

    return {
        "plain": partial(go, partial(loop.step, batch.images, batch.labels)),
        "ours": partial(go, partial(next, ours)),
    }


def main() -> None:
    """Measure, and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[1000, 1000, 1000])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5, help="of each repetition")
    parser.add_argument("--repetitions", type=int, default=11)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    batch = Batch(torch.rand(options.batch, 1, 28, 28), torch.randint(10, (options.batch,)))
    both = contenders(options.widths, batch, options.steps)
    with threads(1):
        for work in both.values():
            work()
        times = in_turns({name: partial(seconds, work) for name, work in both.items()}, options.repetitions)
    row = [
        "-".join(map(str, [784, *options.widths])),
        str(options.batch),
        *(f"{1000 * statistics.median(times[name]) / options.steps:.1f}" for name in both),
        f"{median_ratio(times['ours'], times['plain']):.3f}",
    ]
    for line in tables.markdown_lines(HEADINGS, [row]):
        print(line)


if __name__ == "__main__":
    main()
