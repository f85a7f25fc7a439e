"""How fast would ResNet-32 learn on a node for each block and group? By MACs, as published, and simulated.

    python -m experiments.studies.many_nodes many_nodes.json

Blocks of K × G nodes with the published cuts are measured here, one process, one thread, processor seconds: forward,
backward and update of a batch of 128 random 32×32 images, beside backpropagation; of G groups one alone. What the
nodes make of it is simulated; beside it stands what MACs predict, as GN-DGL counts them. The file keeps what has been
measured, to which another call adds the rest; the picture goes beside it.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.optim import SGD

from datamodules.cifar import CIFAR10
from experiments.measure import turns
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.cost import network_cost
from experiments.measure.prediction import Measured, measure, predict
from experiments.measure.silent import silent_trainer
from experiments.measure.simulator import Link
from experiments.run import tables
from models.methods.neuron_groups import NeuronGroups
from models.networks.cut import Cut
from models.networks.resnet import CifarResNet

Cell = tuple[int, int]
"""K, G."""

DEPTHS, WIDTHS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
CELLS = [(k, g) for g, k in product(WIDTHS, DEPTHS) if 2 <= k * g <= 64]

_GIGABIT = 1e9 / 8
LINKS = {
    "no limit": Link(),
    "10 Gb/s, 0.1 ms": Link(10 * _GIGABIT, 1e-4),
    "1 Gb/s, 0.1 ms": Link(_GIGABIT, 1e-4),
}
JITTER = 0.2


def model_of(cell: Cell) -> NeuronGroups:
    """ResNet-32 in K blocks of G groups; one group is decoupled greedy learning."""
    network, optimizer = partial(CifarResNet, depth=32), partial(SGD, lr=0.01, momentum=0.9, nesterov=True, fused=True)
    return NeuronGroups(network, (3, 32, 32), 10, *cell, cut=Cut(by="published"), optimizer=optimizer)


def by_macs(cell: Cell) -> float:
    """Published speed-up: MACs of backpropagation over those of the slowest node."""
    cost = network_cost(model_of(cell), batch_size=2)
    return cost.backprop_macs / cost.slowest_node_macs


def measure_missing(file: Path, repetitions: int) -> dict[Cell, Measured]:
    """What the file holds, and what it did not."""
    kept = json.loads(file.read_text()) if file.is_file() else {}
    data, trainer = CIFAR10(batch_size=128), silent_trainer(accelerator="cpu")
    for cell in CELLS:
        if (name := "{},{}".format(*cell)) not in kept:
            kept[name] = asdict(measure(model_of(cell), data, trainer, cell[1:], repetitions))
            file.write_text(json.dumps(kept))
    return {cell: _read(kept["{},{}".format(*cell)]) for cell in CELLS}


def _read(kept: dict[str, Any]) -> Measured:
    seconds = {int(width): times for width, times in kept.pop("block_seconds").items()}
    return Measured(seconds, **kept)


def rows(found: Mapping[Cell, Measured]) -> Iterator[list[str]]:
    """Speed-ups over backpropagation, one row per cell."""
    for cell, measured in found.items():
        nodes = math.prod(cell)
        simulated = [predict(measured, nodes, link) for link in LINKS.values()]
        uneven = predict(measured, nodes, LINKS["10 Gb/s, 0.1 ms"], JITTER)
        speedups = [by_macs(cell), *(one.over_backprop for one in (*simulated, uneven))]
        slowest = 1000 * simulated[0].step_seconds
        times = [f"{1000 * measured.backprop_seconds:.0f}", f"{slowest:.1f}"]
        yield [*map(str, (*cell, nodes)), *times, *(f"{one:.1f}" for one in speedups)]


HEADINGS = ("K", "G", "nodes", "backprop, ms", "slowest node, ms", "by MACs", *LINKS, f"10 Gb/s, jitter {JITTER:g}")


@mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False})
def draw(found: Mapping[Cell, Measured], path: Path) -> None:
    """The picture, to a PNG file: a panel for each G."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(WIDTHS), sharex=True, sharey=True)
    for axes, width in zip(panels, WIDTHS, strict=True):
        _panel(axes, {cell: one for cell, one in found.items() if cell[1] == width})
        axes.set(title=f"G = {width}" + (" (DGL)" if width == 1 else ""), xlabel="nodes, K·G")
    panels[0].set_ylabel("speed-up over backpropagation")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, found: Mapping[Cell, Measured]) -> None:
    nodes = [math.prod(cell) for cell in found]
    axes.plot([2, 64], [2, 64], color="lightgrey", linestyle="--", label="as many times as nodes")
    axes.plot(nodes, [*map(by_macs, found)], color="black", marker="s", label="published, by MACs")
    # The widest below: where a link does not matter, all are to be seen.
    for (name, link), colour, line in zip(LINKS.items(), ("tab:blue", "tab:green", "tab:red"), (5, 3, 1), strict=True):
        simulated = [predict(one, count, link).over_backprop for one, count in zip(found.values(), nodes, strict=True)]
        axes.plot(nodes, simulated, color=colour, linewidth=line, marker=".", label=f"simulated, {name}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xticks([2, 4, 8, 16, 32, 64])
    axes.grid(alpha=0.3)


def main(args: Sequence[str] | None = None) -> None:
    """Measure what the file does not hold yet; print and draw all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON; a PNG of its name is drawn")
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args(args)
    keep_freed_memory()
    torch.set_num_threads(1)
    turns.clock = time.process_time
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = measure_missing(asked.file, asked.repetitions)
    draw(found, asked.file.with_suffix(".png"))
    print(tables.markdown(HEADINGS, rows(found)))


if __name__ == "__main__":
    main()
