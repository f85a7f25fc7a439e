"""``cost``: what each node of a cut network costs, without training it."""

import json as json_format
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import lightning.pytorch as L
import torch
from torch import nn

from experiments.measure.yardstick import end_to_end
from experiments.run import tables
from models.local_learning import LocalLearning
from models.method import Method
from models.networks.memory.profile import Convention, Cost, activation_bytes, profile


@dataclass(frozen=True)
class Node:
    """One (block, group): what could live on a machine of its own.

    Attributes:
        block: number of the block, from 1.
        group: number of the neuron group, from 1.
        units: names of the block's first and last unit.
        parameters: of the group's part of the block and of its head.
        forward_macs: multiply-accumulates of the same for one image (all its views, if a method takes several).
        activation_bytes: the group's share of what block and heads save for the backward pass, whole batch.
        bytes_out: size of what the group hands on, whole batch.
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
        final_head: parameters and forward MACs of a head on the last block's detached features, which is no
            node; None if there is none.
        parameters: of everything that is trained.
        batch_size: images per batch in the byte counts.
        convention: how MACs are counted.
        slowest_node_macs: the largest ``forward_macs`` of a node.
        total_macs: forward pass of all blocks and heads: of a training step, and of the ensemble's prediction.
        inference_macs: the model's own prediction: all blocks and the last head (which does not predict in a
            method without labels: the blocks alone).
        thread_macs: one group's own prediction, if groups never see each other: its share of all blocks and of the last
            one's heads ("single thread" in the GN-DGL paper); otherwise None.
        backprop_macs: the uncut network with its classifier.
        peak_activation_bytes: the largest of any block, all its groups together: the peak of one device
            that trains the blocks one after the other (of overlapping blocks, the largest pair).
        backprop_activation_bytes: the same for backpropagation.
        predicted_memory_ratio: the one over the other.
        predicted_step_ratio: time of a step on one device over backpropagation's, as MACs predict; of blocks
            that learn one after the other, on average over all their epochs.
        predicted_speedup: over backpropagation, if every node had a device of its own:
            Σ(f + b) / max(f + b + a), as MACs predict; of blocks that learn one after the other, on one device.
    """

    nodes: list[Node]
    final_head: tuple[int, int] | None
    parameters: int
    batch_size: int
    convention: Convention
    slowest_node_macs: int
    total_macs: int
    inference_macs: int
    thread_macs: int | None
    backprop_macs: int
    peak_activation_bytes: int
    backprop_activation_bytes: int
    predicted_memory_ratio: float
    predicted_step_ratio: float
    predicted_speedup: float


def network_cost(model: LocalLearning, batch_size: int, convention: Convention = "published") -> NetworkCost:
    """Cost of every node of a model, found on the meta device.

    Args:
        model: any method.
        batch_size: images per batch, for the byte counts.
        convention: ``published`` also counts BatchNorm, ReLU, pooling and biases; ``plain`` only the
            multiply-accumulates of convolutions and matrix products.
    """
    plan = model.plan()
    views, heads = plan.views, plan.heads
    parts = [*plan.blocks, nn.Sequential()][: len(heads)]  # a final head reads what block K hands on
    found = profile(parts, model.image_shape, views * batch_size, lambda k, _: heads[k], convention)
    costs = cast("list[tuple[Cost, Cost]]", found)  # each has a head
    nodes = [
        Node(
            block=k,
            group=group,
            units=_span(model.blocks[k - 1]),
            parameters=(block.parameters + head.parameters) // model.num_groups,
            forward_macs=views * (block.forward_macs + head.forward_macs) // model.num_groups,
            activation_bytes=activation_bytes([block, head]) // model.num_groups,
            bytes_out=block.output_bytes // model.num_groups,
        )
        for k, (block, head) in enumerate(costs[: model.num_blocks], start=1)
        for group in range(1, model.num_groups + 1)
    ]
    blocks, heads = (views * sum(cost.forward_macs for cost in part) for part in zip(*costs, strict=True))
    steps = [
        views * (_step_macs(block, there, back) + _step_macs(head, *[min(there, back)] * 2)) / model.num_groups
        for (block, head), there, back in zip(costs, plan.forward_passes, plan.backward_passes, strict=True)
    ]
    final = costs[-1][1]
    peak = max(
        activation_bytes([*(costs[k][0] for k in together), costs[together[-1]][1]]) for together in plan.held_together
    )
    backprop_macs, backprop_bytes = _backprop(model, batch_size, convention)
    return NetworkCost(
        nodes=nodes,
        final_head=(final.parameters, final.forward_macs) if len(costs) > model.num_blocks else None,
        parameters=sum(part.parameters for pair in costs for part in pair),
        batch_size=batch_size,
        convention=convention,
        slowest_node_macs=max(node.forward_macs for node in nodes),
        total_macs=blocks + heads,
        inference_macs=blocks // views + (final.forward_macs if model.predicts_classes else 0),
        thread_macs=(blocks + costs[model.num_blocks - 1][1].forward_macs) // plan.threads
        if plan.threads > 1
        else None,
        backprop_macs=backprop_macs,
        peak_activation_bytes=peak,
        backprop_activation_bytes=backprop_bytes,
        predicted_memory_ratio=peak / backprop_bytes,
        predicted_step_ratio=sum(steps) * model.num_groups / backprop_macs,
        predicted_speedup=backprop_macs / (sum(steps) if model.schedule.lengths else max(steps[: model.num_blocks])),
    )


def _step_macs(cost: Cost, there: float, back: float) -> float:
    """Work of so many passes there and back, in those of a step, which goes there and back once.

    A backward pass is two forward passes' work, of weights that do not learn one.
    """
    return (cost.forward_macs * (there + 2 * back) - cost.fixed_macs * back) / 3


def _backprop(model: LocalLearning, batch_size: int, convention: Convention) -> tuple[int, int]:
    """MACs and activation bytes of the network trained end to end."""
    with torch.device("meta"):
        whole = end_to_end(model)
    units, views = [*whole.blocks[0].children(), *whole.heads], whole.plan().views
    parts = [part for part, _ in profile(units, whole.image_shape, batch_size * views, convention=convention)]
    return views * sum(part.forward_macs for part in parts), activation_bytes(parts)


def _span(block: Any) -> str:
    names = [name for name, _ in block.named_children()]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def macs_of(model: Method, batch_size: int) -> dict[str, float]:
    """MACs for the summary of a run; of a method without backward passes, which ``cost`` does not know, none.

    ``step_flops`` are those of a training step over backpropagation's: multiply-accumulates alone.
    """
    if not isinstance(model, LocalLearning):
        return {}
    cost = network_cost(model, batch_size)
    macs = {
        "slowest_node_macs": cost.slowest_node_macs,
        "inference_macs": cost.inference_macs,
        "ensemble_macs": cost.total_macs,
        "thread_macs": cost.thread_macs,
    }
    plain = network_cost(model, batch_size, "plain").predicted_step_ratio
    return {name: count for name, count in macs.items() if count is not None} | {"step_flops": plain}


def equal_memory_batches(model: LocalLearning, cost: NetworkCost) -> dict[int, int]:
    """Of blocks that learn one after the other: first epoch of each → images per batch that fill backprop's memory."""
    ratios = [cost.backprop_activation_bytes / node.activation_bytes for node in cost.nodes if node.group == 1]
    return {model.schedule.first_epoch(k): int(cost.batch_size * ratio) for k, ratio in enumerate(ratios)}


_HEADINGS = ("block", "units", "parameters", "M MACs", "MiB saved", "MiB handed on")


def _rows(cost: NetworkCost) -> Iterator[tuple[str, ...]]:
    """One per block, since all groups of a block cost the same, and one of a final head."""
    for node in cost.nodes:
        if node.group == 1:
            yield (
                str(node.block),
                node.units,
                f"{node.parameters:,}",
                f"{node.forward_macs / 1e6:.2f}",
                f"{node.activation_bytes / 2**20:.1f}",
                f"{node.bytes_out / 2**20:.2f}",
            )
    if cost.final_head:
        parameters, macs = cost.final_head
        yield "final", "head", f"{parameters:,}", f"{macs / 1e6:.2f}", "", ""


def markdown_table(model: LocalLearning, batch_size: int) -> str:
    """The cut as a Markdown table, for TensorBoard's text page."""
    return tables.markdown(_HEADINGS, _rows(network_cost(model, batch_size)))


def show_cost(model: LocalLearning, batch_size: int, convention: Convention, json: bool, processes: int = 1) -> None:
    """Print a model's cost as a table, or as JSON.

    Args:
        model: any method.
        batch_size: images of one process, for the byte counts.
        convention: how MACs are counted.
        json: print JSON.
        processes: how many share a batch.
    """
    cost = network_cost(model, batch_size, convention)
    if json:
        print(json_format.dumps(asdict(cost), indent=2))
        return
    tables.show(_HEADINGS, _rows(cost), words=["units"], title=_title(model, batch_size, processes))
    print(_totals(cost))
    if model.schedule.lengths:
        sizes = json_format.dumps(equal_memory_batches(model, cost))
        print(f"With its memory, batches of block after block: --data.batch_sizes '{sizes}'")
    else:
        print(f"  one per node {cost.predicted_speedup:.1f} times as fast, by MACs, communication left out")


def replicas(trainer: L.Trainer) -> int:
    """How many processes share a batch."""
    return (trainer.distributed_sampler_kwargs or {"num_replicas": 1})["num_replicas"]


def _title(model: LocalLearning, batch_size: int, processes: int) -> str:
    nodes = f"{model.num_blocks} block{'s' if model.num_blocks > 1 else ''}"
    if model.num_groups > 1:
        nodes += f" × {model.num_groups} groups, costs of one group"
    count = model.plan().views
    views = "" if count == 1 else f" in {count} views"
    batch = f"a batch of {batch_size}"
    if processes > 1:
        batch = f"one process, a batch of {processes} processes × {batch_size}"
    return f"{model.network_name}, {nodes}\nMACs of one image{views}, MiB of {batch}"


def _totals(cost: NetworkCost) -> str:
    alone = "" if cost.thread_macs is None else f", a group alone {cost.thread_macs / 1e6:.2f} M"
    return (
        f"in all         {cost.parameters:,} parameters, {cost.total_macs / 1e6:.2f} M MACs forward "
        f"(backprop {cost.backprop_macs / 1e6:.2f} M); slowest node {cost.slowest_node_macs / 1e6:.2f} M\n"
        f"inference      {cost.inference_macs / 1e6:.2f} M MACs, with all heads {cost.total_macs / 1e6:.2f} M{alone}\n"
        f"Predicted, × backprop:\n"
        f"  peak memory  {cost.predicted_memory_ratio:.3f} of its "
        f"{cost.backprop_activation_bytes / 2**20:.1f} MiB of activations\n"
        f"  one device   {cost.predicted_step_ratio:.2f} of its step time, by MACs"
    )
