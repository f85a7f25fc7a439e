"""``cost``: what each node of a cut network costs, without training it."""

import json as json_format
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from models import LocalLearning
from models.networks.profile import Convention, activation_bytes, profile


@dataclass(frozen=True)
class Node:
    """One (block, group): what could live on a machine of its own.

    Attributes:
        block: number of the block, from 1.
        group: number of the neuron group, from 1.
        units: names of the block's first and last unit.
        parameters: of the block and its head.
        forward_macs: multiply-accumulates of block and head for one image.
        activation_bytes: saved for the backward pass by block and head, whole batch.
        bytes_out: size of what the block hands on, whole batch.
    """

    block: int
    group: int
    units: str
    parameters: int
    forward_macs: int
    activation_bytes: int
    bytes_out: int


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a cut network beside the same network under backpropagation.

    Attributes:
        nodes: one per (block, group).
        batch_size: images per batch in the byte counts.
        convention: how MACs are counted.
        slowest_node_macs: the largest ``forward_macs`` of a node.
        total_macs: sum over the nodes.
        backprop_macs: the network with its classifier alone.
        peak_activation_bytes: the largest ``activation_bytes`` of a node: the peak of one device
            that trains the nodes one after the other.
        backprop_activation_bytes: the same for backpropagation.
        predicted_memory_ratio: the one over the other.
        predicted_step_ratio: time of a step on one device over backpropagation's, as MACs predict.
        predicted_speedup: over backpropagation, if every node had a device of its own:
            Σ(f + b) / max(f + b + a), as MACs predict.
    """

    nodes: list[Node]
    batch_size: int
    convention: Convention
    slowest_node_macs: int
    total_macs: int
    backprop_macs: int
    peak_activation_bytes: int
    backprop_activation_bytes: int
    predicted_memory_ratio: float
    predicted_step_ratio: float
    predicted_speedup: float


def network_cost(model: LocalLearning, batch_size: int, convention: Convention = "published") -> NetworkCost:
    """Cost of every node of a model, found on the meta device.

    Args:
        model: any method on the common loop.
        batch_size: images per batch, for the byte counts.
        convention: ``published`` also counts BatchNorm, ReLU, pooling and biases; ``plain`` only the
            multiply-accumulates of convolutions and matrix products.
    """
    costs = profile(list(model.blocks), model.image_shape, batch_size, lambda k, _: model.heads[k], convention)
    nodes = [
        Node(
            block=k,
            group=1,
            units=_span(model.blocks[k - 1]),
            parameters=block.parameters + head.parameters,
            forward_macs=block.forward_macs + head.forward_macs,
            activation_bytes=activation_bytes([block, head]),
            bytes_out=block.output_bytes,
        )
        for k, (block, head) in enumerate(costs, start=1)
    ]
    classifier = costs[-1][1]
    end_to_end = [block for block, _ in costs] + [classifier]
    total, slowest = sum(n.forward_macs for n in nodes), max(n.forward_macs for n in nodes)
    backprop_macs, backprop_bytes = sum(c.forward_macs for c in end_to_end), activation_bytes(end_to_end)
    peak = max(n.activation_bytes for n in nodes)
    return NetworkCost(
        nodes=nodes,
        batch_size=batch_size,
        convention=convention,
        slowest_node_macs=slowest,
        total_macs=total,
        backprop_macs=backprop_macs,
        peak_activation_bytes=peak,
        backprop_activation_bytes=backprop_bytes,
        predicted_memory_ratio=peak / backprop_bytes,
        predicted_step_ratio=total / backprop_macs,
        predicted_speedup=backprop_macs / slowest,
    )


def _span(block: Any) -> str:
    names = [name for name, _ in block.named_children()]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


_HEADINGS = ("block", "units", "parameters", "M MACs", "MiB saved", "MiB handed on")


def _rows(cost: NetworkCost) -> list[tuple[str, ...]]:
    return [
        (
            str(n.block),
            n.units,
            f"{n.parameters:,}",
            f"{n.forward_macs / 1e6:.2f}",
            f"{n.activation_bytes / 2**20:.1f}",
            f"{n.bytes_out / 2**20:.2f}",
        )
        for n in cost.nodes
    ]


def markdown_table(model: LocalLearning, batch_size: int) -> str:
    """The cut as a Markdown table, for TensorBoard's text page."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *_rows(network_cost(model, batch_size))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show_cost(model: LocalLearning, batch_size: int, convention: Convention, json: bool) -> None:
    """Print a model's cost as a table, or as JSON."""
    cost = network_cost(model, batch_size, convention)
    if json:
        print(json_format.dumps(asdict(cost), indent=2))
        return
    table = Table(
        title=f"{model.network_title}, {len(model.blocks)} blocks, batch {batch_size} (MACs: one image, MiB: batch)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "units" else "right", no_wrap=True)
    for row in _rows(cost):
        table.add_row(*row)
    Console().print(table)
    print(
        f"slowest node   {cost.slowest_node_macs / 1e6:.2f} M MACs of {cost.total_macs / 1e6:.2f} M in all "
        f"(backprop {cost.backprop_macs / 1e6:.2f} M)\n"
        f"peak memory    {cost.predicted_memory_ratio:.3f} × backprop's "
        f"{cost.backprop_activation_bytes / 2**20:.1f} MiB of activations\n"
        f"one device     {cost.predicted_step_ratio:.2f} × backprop's step time\n"
        f"one per block  {cost.predicted_speedup:.1f} × backprop's speed"
    )
