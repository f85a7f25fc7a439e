"""Time and memory of a training step with neuron groups, beside backpropagation and the published loop.

    python -m experiments.studies.neuron_groups --cells 4,4 16,8 --repetitions 7

ResNet-32 on random 32×32 images, published cuts, λ = 0.5, T = 3; channels-last; no loader, no Lightning.
The three are timed in turns. "Published loop": one head after the other on a copy of the features, average
pooling by ``AdaptiveAvgPool2d``, one SGD over all parameters (``published_loop.py``).
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import Batch
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.turns import in_turns, median_ratio, seconds
from experiments.measure.workbench import plain_steps
from experiments.measure.yardstick import end_to_end
from experiments.run import tables
from experiments.studies.published_loop import PublishedLoop
from models.methods.neuron_groups import NeuronGroups
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet

Step = Callable[[], None]
sgd = partial(SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)


def neuron_groups(num_blocks: int, num_groups: int) -> NeuronGroups:
    """Our method."""
    network, cut = partial(CifarResNet, depth=32), Cut(by="published")
    shape, optimizer = (3, 32, 32), partial(sgd, fused=True)
    return NeuronGroups(network, shape, 10, num_blocks, num_groups, cut, final_head=AuxHead, optimizer=optimizer)


def _published_head(shape: tuple[int, ...]) -> nn.Sequential:
    layers = list(AuxHead(shape, 10))
    layers[3] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers)


def published(num_blocks: int, num_groups: int) -> PublishedLoop:
    """The published loop on the same blocks."""
    model = neuron_groups(num_blocks, num_groups)
    *shapes, last = [(head.get_parameter("0.weight").shape[1], 8, 8) for head in model.heads]
    heads = [[_published_head(shape) for _ in range(num_groups)] for shape in shapes]
    return PublishedLoop([*model.blocks], heads, _published_head(last)).to(memory_format=torch.channels_last)


def published_steps(loop: PublishedLoop, batch: Batch) -> Iterator[None]:
    """Its training steps: one per ``next``."""
    optimizer = sgd(loop.train().parameters())
    while True:
        optimizer.zero_grad()
        loop.step(batch.images, batch.labels)
        optimizer.step()
        yield


def peak_mib(network: nn.Module, step: Step) -> float:
    """Most MiB of activations held at one time in a step."""
    with SavedTensorMeter([*network.parameters(), *network.buffers()]) as meter:
        step()
    return meter.peak / 2**20


def macs(step: Step) -> int:
    """Multiply-accumulates of convolutions and matrix products that a step executes, backward pass included."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() // 2


def show_profile(name: str, step: Step, steps: int = 5) -> None:
    """Print where the time of a step goes, in ms per operator."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)[:8]
    parts = [f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / 1000 / steps:.0f}" for event in events]
    print(f"  {name}: {', '.join(parts)}")


HEADINGS = (
    "K",
    "G",
    "backprop, ms",
    "published loop, ms",
    "ours, ms",
    "published / ours",
    "ours / backprop",
    "MACs executed / backprop's",
    "peak, MiB",
    "published, MiB",
)


def measure(cell: str, batch: Batch, options: argparse.Namespace) -> list[str]:
    """The cells of the table row of ``K,G``."""
    k, g = map(int, cell.split(","))
    ours, loop = neuron_groups(k, g), published(k, g)
    backprop = end_to_end(ours)
    steps: dict[str, Step] = {
        "backprop": partial(next, plain_steps(backprop, batch)),
        "published": partial(next, published_steps(loop, batch)),
        "ours": partial(next, plain_steps(ours, batch)),
    }
    for step in steps.values():
        step()
    peaks = [peak_mib(ours, steps["ours"]), peak_mib(loop, steps["published"])]
    work = macs(steps["ours"]) / macs(steps["backprop"])
    times = in_turns({name: partial(seconds, step) for name, step in steps.items()}, options.repetitions)
    for name, step in steps.items() if options.profile else ():
        show_profile(name, step)
    return [
        str(k),
        str(g),
        *(f"{1000 * statistics.median(times[name]):.0f}" for name in steps),
        f"{median_ratio(times['published'], times['ours']):.2f}",
        f"{median_ratio(times['ours'], times['backprop']):.2f}",
        f"{work:.2f}",
        *(f"{peak:.1f}" for peak in peaks),
    ]


def main() -> None:
    """Measure the cells of the grid and print one table row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    grid = [f"{k},{g}" for k in (4, 16) for g in (1, 2, 4, 8)]
    parser.add_argument("--cells", nargs="+", default=grid, metavar="K,G")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="also print the dearest operators of each")
    parser.add_argument("--default_allocator", action="store_true", help="let the C library give memory back")
    options = parser.parse_args()
    if not options.default_allocator:
        keep_freed_memory()
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(10, (options.batch,)))
    for line in tables.markdown_lines(HEADINGS, (measure(cell, batch, options) for cell in options.cells)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
