"""``probe``: how good are the frozen features of every block of a run?

A linear classifier and a k-nearest-neighbour vote on the features of each block, which are computed
once, un-augmented, in evaluation mode. The test split is used for the final metrics only.
"""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as L

from datamodules.base import ImageDataModule
from experiments.probing.features import Splits, extract
from experiments.probing.knn import knn_classes
from experiments.probing.linear_probe import fit_linear
from experiments.probing.probe_results import Findings, record, show
from experiments.probing.protocol import Protocol
from experiments.probing.saved_network import checkpoint_of
from experiments.probing.supervised import supervised_top1
from experiments.run.errors import RunError
from losses import effective_rank
from models.method import Method


def chosen_blocks(model: Method, asked: Sequence[int] | None) -> list[int]:
    """The numbers of the blocks to probe, from 1; all that have learned by default.

    Raises:
        RunError: the network has no such block, or none at all, or the block has not learned.
    """
    known = list(range(1, len(model.learned_blocks) + 1))
    if not known:
        raise RunError(f"{model.network_name} has no block whose features could be probed.")
    if asked is not None and (not asked or not set(asked) <= set(known)):
        learned = " that have learned" if len(known) < model.num_blocks else ""
        raise RunError(f"The run has blocks {known}{learned}, not {sorted(set(asked))}: choose --blocks from them.")
    return known if asked is None else sorted(set(asked))


def probe_network(
    model: Method, splits: Splits, blocks: Sequence[int], protocol: Protocol, findings: Findings, prefix: str = ""
) -> None:
    """Probe some blocks, counted from 1, of a network, in which nothing changes, and add to the findings."""
    device = model.device
    with findings.timed("extraction"):
        known = extract(model, splits, [splits.train, splits.val], blocks).near(device)
        test = extract(model, splits, [splits.test], blocks).near(device)
    findings.images += len(known) + len(test)
    with findings.timed("ranks"):
        findings.metrics |= {f"{prefix}effective_rank/{kind}": effective_rank(z) for kind, z in test.kinds.items()}
    with findings.timed("kNN"):
        for kind, queries in test.kinds.items():
            bank, labels = known.kinds[kind].to(device), known.labels.to(device)
            voted = knn_classes(bank, labels, queries.to(device), protocol.k, protocol.temperature).cpu()
            findings.metrics[f"{prefix}{protocol.knn}/{kind}/top1"] = (voted == test.labels.cpu()).float().mean().item()
    with findings.timed("linear probes"):
        linear, rates = fit_linear(known, len(splits.val), model.num_classes, protocol, device)
        for kind, [top1] in linear.top1(test).items():
            name = f"{prefix}{protocol.linear}/{kind}"
            findings.metrics |= {f"{name}/top1": top1, f"{name}/lr": rates[kind]}


def probe_run(
    model: Method,
    data: ImageDataModule,
    trainer: L.Trainer,
    checkpoint: Path,
    protocol: Protocol,
    blocks: Sequence[int] | None,
    random: bool,
    supervised_epochs: int,
) -> None:
    """Probe a checkpoint; write down and show what is found: :meth:`experiments.trainer.Trainer.probe`.

    Raises:
        RunError: the checkpoint does not fit model or images, or the protocol does not fit the run.
    """
    saved, findings = checkpoint_of(model, checkpoint), Findings()
    wanted = chosen_blocks(model, blocks)
    splits = Splits.of(data)
    if protocol.k > (known := len(splits.train) + len(splits.val)):
        raise RunError(f"k is {protocol.k}, but only {known} images can be neighbours: choose --k up to that.")
    model.to(trainer.strategy.root_device)
    if random:  # the weights that the run began with
        probe_network(model, splits, wanted, protocol, findings, "random/")
    model.load_state_dict(saved.weights)
    probe_network(model, splits, wanted, protocol, findings)
    if supervised_epochs:
        with findings.timed("supervised training"):
            top1 = supervised_top1(model.make_network, data, trainer, supervised_epochs, protocol.seed)
        findings.metrics["supervised/test/top1"] = top1
    show(findings, f"{saved.file}, step {saved.step}: {data.name}, test top-1 %, effective rank")
    record(findings, saved, data.name)
