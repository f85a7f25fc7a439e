"""Time of a training step with ``torch.compile`` beside the plain one.

    python -m experiments.studies.compiled --num_blocks 4 --repetitions 10

Decoupled greedy learning of ResNet-32 on random 32×32 images, published cuts, on a GPU if there is one; no loader, no
Lightning. Both are timed in turns, after a step with a whole and one with a smaller last batch, in which it compiles.
"""

import argparse
import statistics
from functools import partial

import torch
from torch.optim import SGD

from datamodules.batch import Batch
from experiments.measure.turns import in_turns, median_ratio, seconds
from experiments.measure.workbench import plain_steps
from experiments.run import tables
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.cut import Cut
from models.networks.resnet import CifarResNet

HEADINGS = ("K", "plain, ms", "compiled, ms", "compiled / plain", "first steps, s", "compiled, first steps, s")


def random_batch(size: int, device: torch.device) -> Batch:
    """Images of no class."""
    images = torch.randn(size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    return Batch(images, torch.randint(10, (size,), device=device))


def measure(num_blocks: int, batch_size: int, repetitions: int) -> list[str]:
    """The cells of a table row."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = partial(SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    task = partial(CifarResNet, depth=32), (3, 32, 32), 10, num_blocks, Cut(by="published")
    models = [DecoupledGreedy(*task, optimizer=optimizer, compile=compiled).to(device) for compiled in (False, True)]
    plain, compiled = (
        [partial(next, plain_steps(model, random_batch(size, device))) for size in (batch_size, batch_size // 2)]
        for model in models
    )
    first = [sum(seconds(step, device) for step in steps) for steps in (plain, compiled)]
    work = {"plain": partial(seconds, plain[0], device), "compiled": partial(seconds, compiled[0], device)}
    times = in_turns(work, repetitions)
    return [
        str(num_blocks),
        *(f"{1000 * statistics.median(times[name]):.0f}" for name in work),
        f"{median_ratio(times['compiled'], times['plain']):.2f}",
        *(f"{one:.1f}" for one in first),
    ]


def main() -> None:
    """Measure and print a table of one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    row = measure(options.num_blocks, options.batch, options.repetitions)
    for line in tables.markdown_lines(HEADINGS, [row]):
        print(line)


if __name__ == "__main__":
    main()
