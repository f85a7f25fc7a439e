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
from torch.nn import functional as F
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import Batch
from experiments.measure.turns import in_turns, median_ratio, seconds
from experiments.measure.workbench import plain_steps
from experiments.run import tables
from experiments.studies.options import set_allocator, timing_parser
from experiments.studies.published_loop import PublishedLoop
from models.methods.neuron_groups import NeuronGroups
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet

sgd = partial(SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
make_fused_sgd = partial(sgd, fused=True)


def backprop() -> tuple[nn.Module, Callable[[Batch], None]]:
    """The whole network, trained through its classifier."""
    network = CifarResNet((3, 32, 32), 10, depth=32).to(memory_format=torch.channels_last)
    optimizer = make_fused_sgd(network.parameters())

    def step(batch: Batch) -> None:
        F.cross_entropy(network(batch.images), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return network, step


def neuron_groups(num_blocks: int, num_groups: int) -> tuple[NeuronGroups, Callable[[Batch], None]]:
    """Our method, in a bare loop."""
    network = partial(CifarResNet, depth=32)
    cut = Cut(by="published")
    model = NeuronGroups(
        network, (3, 32, 32), 10, num_blocks, num_groups, cut, final_head=AuxHead, optimizer=make_fused_sgd
    )
    steps: list[Iterator[None]] = []

    def step(batch: Batch) -> None:
        if not steps:
            steps.append(plain_steps(model, batch))
        next(steps[0])

    return model, step


class _AveragePool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def _published_head(shape: tuple[int, ...]) -> nn.Sequential:
    layers = list(AuxHead(shape, 10))
    layers[3] = _AveragePool()
    return nn.Sequential(*layers)


def published(num_blocks: int, num_groups: int) -> tuple[nn.Module, Callable[[Batch], None]]:
    """The published loop on the same blocks."""
    model, _ = neuron_groups(num_blocks, num_groups)
    shapes = [(block_head.get_parameter("0.weight").shape[1], 8, 8) for block_head in model.heads]
    heads = [[_published_head(shape) for _ in range(num_groups)] for shape in shapes[:num_blocks]]
    loop = PublishedLoop([*model.blocks], heads, _published_head(shapes[-1]))
    loop.to(memory_format=torch.channels_last)
    optimizer = sgd(loop.parameters())

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loop.step(batch.images, batch.labels)
        optimizer.step()

    return loop, step


def peak_bytes(network: nn.Module, step: Callable[[Batch], None], batch: Batch) -> int:
    """Most activation bytes held at one time in a step."""
    with SavedTensorMeter([*network.parameters(), *network.buffers()]) as meter:
        step(batch)
    return meter.peak


def macs(step: Callable[[Batch], None], batch: Batch) -> int:
    """Multiply-accumulates of convolutions and matrix products that a step executes, backward pass included."""
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return counter.get_total_flops() // 2


def show_profile(name: str, step: Callable[[Batch], None], batch: Batch, steps: int = 5) -> None:
    """Print where the time of a step goes, in ms per operator."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step(batch)
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
    contenders = {"backprop": backprop(), "published": published(k, g), "ours": neuron_groups(k, g)}
    peaks, work = {}, {}
    for name, (network, step) in contenders.items():
        network.to(options.device).train()
        step(batch)
        peaks[name] = peak_bytes(network, step, batch) / 2**20
        work[name] = macs(step, batch)
    steps = {name: partial(seconds, partial(step, batch), options.device) for name, (_, step) in contenders.items()}
    times = in_turns(steps, options.repetitions)
    for name, (_, step) in contenders.items() if options.profile else ():
        show_profile(name, step, batch)
    return [
        str(k),
        str(g),
        *(f"{1000 * statistics.median(times[name]):.0f}" for name in contenders),
        f"{median_ratio(times['published'], times['ours']):.2f}",
        f"{median_ratio(times['ours'], times['backprop']):.2f}",
        f"{work['ours'] / work['backprop']:.2f}",
        f"{peaks['ours']:.1f}",
        f"{peaks['published']:.1f}",
    ]


def main() -> None:
    """Measure the cells of the grid and print one table row each."""
    parser = timing_parser(__doc__, repetitions=7)
    grid = [f"{k},{g}" for k in (4, 16) for g in (1, 2, 4, 8)]
    parser.add_argument("--cells", nargs="+", default=grid, metavar="K,G")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="also print the dearest operators of each")
    options = parser.parse_args()
    set_allocator(options)
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, 32, 32).to(options.device, memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(10, (options.batch,), device=options.device))
    rows = (measure(cell, batch, options) for cell in options.cells)
    for line in tables.markdown_lines(HEADINGS, rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
