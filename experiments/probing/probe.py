"""``probe``: how good are the frozen features of every block of a run?

A linear classifier and a k-nearest-neighbour vote on the features of each block, which are computed in evaluation
mode: once and un-augmented, or for the linear classifier anew in each epoch. The test split chooses nothing, except
in the metric that says so.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch

from datamodules.augment import Augment
from datamodules.base import ImageDataModule
from experiments.probing.association import associate
from experiments.probing.batch_norm import reestimate
from experiments.probing.corruptions import corrupted_accuracy, corruption_names
from experiments.probing.features import Examples, Features, Splits, Standardisation, block_reader, draw, of_kinds
from experiments.probing.knn import knn_classes
from experiments.probing.linear_probe import DistilledProbe, LinearProbe, SharedProbe, fit_linear
from experiments.probing.probe_results import Findings, record, show
from experiments.probing.processes import goes_on_alone, shared
from experiments.probing.protocol import Protocol
from experiments.probing.saved_network import checkpoint_of
from experiments.probing.supervised import supervised_top1
from experiments.run.errors import RunError
from losses import effective_rank
from losses.processes import process_count
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


def require_possible(protocol: Protocol, splits: Splits) -> None:
    """See that data and packages allow what is asked for, before anything is computed.

    Raises:
        RunError: they do not.
    """
    if protocol.k > (known := len(splits.data.known_images)):
        raise RunError(f"k is {protocol.k}, but only {known} images can be neighbours: choose --k up to that.")
    loaded = splits.data.training_images
    if protocol.augment and splits.data.augment == Augment() and loaded.for_evaluation() is loaded:
        raise RunError(
            f"Nothing is random in the training images of {splits.data.name}: say what shall be, for example "
            "--data.augment.pad 4 --data.augment.flip true, or leave --augment false."
        )
    if protocol.corrupted_images:
        corruption_names()


def probe_network(
    model: Method, splits: Splits, blocks: Sequence[int], protocol: Protocol, findings: Findings, prefix: str = ""
) -> None:
    """Probe some blocks, counted from 1, of a network, in which nothing changes, and add to the findings."""
    device, compute = model.device, block_reader(model, blocks)
    with findings.timed("extraction"):
        known = splits.read([splits.train, splits.val], device, compute).near(device)
        test = splits.read([splits.test], device, compute).near(device)
    findings.images += len(known) + len(test)
    with findings.timed("ranks"):
        findings.metrics |= {f"{prefix}effective_rank/{kind}": effective_rank(z) for kind, z in test.kinds.items()}
    with findings.timed("kNN"):
        for kind, queries in test.kinds.items():
            bank, labels = known.kinds[kind].to(device), known.labels.to(device)
            vote = partial(knn_classes, bank, labels, k=protocol.k, temperature=protocol.temperature)
            asked = queries.to(device).chunk(process_count())
            voted = torch.cat([*shared(asked, partial(map, vote))]).cpu()
            findings.metrics[f"{prefix}{protocol.knn}/{kind}/top1"] = (voted == test.labels.cpu()).float().mean().item()
    for share in protocol.label_shares if protocol.association else ():
        with findings.timed("association"):
            found = associate(known.labelled(share, len(splits.val), protocol.seed)[2], test, model.num_classes)
        few = protocol.labels(share)
        findings.metrics |= {f"{prefix}association{few}/{name}": value for name, value in found.items()}
    if protocol.standardise:  # for linear classifiers alone
        scale = Standardisation.of(known[: len(splits.train)])
        scale.apply(known)
        scale.apply(test)
        compute = scale.after(compute)
    for share in protocol.label_shares:
        train, val, both = known.labelled(share, len(splits.val), protocol.seed)
        with findings.timed("linear probes"):
            examples: tuple[Examples, Examples] = train, both
            if protocol.augment:
                examples = splits.augmented(device, compute)
            linear, found = judge_linearly(examples, val, test, model.num_classes, protocol, device)
        if protocol.corrupted_images:
            with findings.timed("corrupted images"):
                some = draw(splits.test, protocol.corrupted_images, protocol.seed)
                found |= corrupted_accuracy(linear, some, splits, device, compute)
        few = protocol.labels(share)
        findings.metrics |= {f"{prefix}{protocol.linear}{few}/{name}": value for name, value in found.items()}
        kinds = model.nested_features
        judges = {"shared": (protocol.shared, SharedProbe), "distilled": (protocol.distilled, DistilledProbe)}
        for judge, make in [(name, make) for name, (asked, make) in judges.items() if asked and len(kinds) > 1]:
            with findings.timed(f"{judge} probe"):
                examples = train.only(kinds), both.only(kinds)
                if protocol.augment:
                    examples = splits.augmented(device, of_kinds(compute, kinds))
                nested = val.only(kinds), test.only(kinds)
                _, found = judge_linearly(examples, *nested, model.num_classes, protocol, device, make)
            name = f"{prefix}{protocol.linear_of_widths(judge)}{few}"
            findings.metrics |= {f"{name}/{metric}": value for metric, value in found.items()}


def judge_linearly(
    examples: tuple[Examples, Examples],
    val: Features,
    test: Features,
    num_classes: int,
    protocol: Protocol,
    device: torch.device,
    make: type[LinearProbe] = LinearProbe,
) -> tuple[LinearProbe, dict[str, float]]:
    """Fit linear classifiers to examples without and with those for validation; judge them on test images.

    Returns:
        The classifiers, and ``<kind>/`` ``lr``, ``top1``, ``top5`` (of more than five classes) and, if asked for,
        ``top1_best_on_test``, that of the epoch which is best on the test images, → value.
    """
    epochs: list[dict[str, list[float]]] = []

    def after_epoch(linear: LinearProbe) -> None:
        if protocol.best_on_test:
            epochs.append(linear.accuracy(test))

    linear, rates = fit_linear(*examples, val, num_classes, protocol, device, after_epoch, make)
    found = {f"{kind}/lr": rate for kind, rate in rates.items()}
    for top in (1, 5) if num_classes > 5 else (1,):
        found |= {f"{kind}/top{top}": share for kind, [share] in linear.accuracy(test, top).items()}
    if epochs:
        found |= {f"{kind}/top1_best_on_test": max(epoch[kind][0] for epoch in epochs) for kind in rates}
    return linear, found


def probe_run(
    model: Method,
    data: ImageDataModule,
    trainer: L.Trainer,
    checkpoint: Path,
    protocol: Protocol,
    blocks: Sequence[int] | None,
    random: bool,
    reestimate_batch_norm: bool,
    supervised_epochs: int,
) -> None:
    """Probe a checkpoint; write down and show what is found: :meth:`experiments.trainer.Trainer.probe`.

    Raises:
        RunError: the checkpoint does not fit model or images, or the protocol does not fit the run.
    """
    saved, findings = checkpoint_of(model, checkpoint), Findings()
    wanted = chosen_blocks(model, blocks)
    splits = Splits.of(data)
    require_possible(protocol, splits)
    model.to(trainer.strategy.root_device)
    if random:  # the weights that the run began with
        probe_network(model, splits, wanted, protocol, findings, "random/")
    model.load_state_dict(saved.weights)
    probe_network(model, splits, wanted, protocol, findings)
    if reestimate_batch_norm:
        reestimate(model, (batch.images for batch in splits.shuffled(model.device)), max(wanted))
        probe_network(model, splits, wanted, protocol, findings, "reestimated/")
    if not goes_on_alone():
        return
    if supervised_epochs:
        with findings.timed("supervised training"):
            top1 = supervised_top1(model.make_network, data, trainer, supervised_epochs, protocol.seed)
        findings.metrics["supervised/test/top1"] = top1
    show(findings, f"{saved.file}, step {saved.step}: {data.name}, test top-1 %, effective rank")
    record(findings, saved, data.name)
