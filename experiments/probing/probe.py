"""``probe``: how good are the frozen features of every block of a run?

A linear classifier and a k-nearest-neighbour vote on the features of each block, which are computed
once, un-augmented, in evaluation mode. The test split is used for the final metrics only.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules.base import ImageDataModule
from experiments.measure.silent import silent_trainer
from experiments.probing.checkpoint import checkpoint_of
from experiments.probing.features import Features, Splits, extract
from experiments.probing.knn import knn_top1
from experiments.probing.linear_probe import fit_linear
from experiments.probing.probe_results import Findings, record, show
from experiments.probing.protocol import Protocol
from experiments.run.errors import RunError
from losses import effective_rank
from models.method import Method
from models.methods.backprop import Backprop


def chosen_blocks(model: Method, asked: Sequence[int] | None) -> list[int]:
    """The numbers of the blocks to probe, from 1; all by default.

    Raises:
        RunError: the network has no such block, or none at all.
    """
    known = list(range(1, model.num_blocks + 1))
    if not known:
        raise RunError(f"{model.network_name} has no block whose features could be probed.")
    if asked is not None and (not asked or not set(asked) <= set(known)):
        raise RunError(f"The run has blocks {known}, not {sorted(set(asked))}: choose --blocks from them.")
    return known if asked is None else sorted(set(asked))


def probe_network(
    model: Method, splits: Splits, blocks: Sequence[int], protocol: Protocol, findings: Findings, prefix: str = ""
) -> None:
    """Probe some blocks of one network; nothing in it changes.

    Args:
        model: the network, on the device to compute on.
        splits: the images.
        blocks: numbers of the blocks, from 1.
        protocol: how to judge.
        findings: what is found is added here.
        prefix: put before the metrics' names.
    """
    with findings.timed("extraction"):
        known = extract(model, splits, [splits.train, splits.val], blocks).near(model.device)
        test = extract(model, splits, [splits.test], blocks).near(model.device)
    findings.images += len(known) + len(test)
    with findings.timed("ranks"):
        findings.metrics |= {f"{prefix}effective_rank/{kind}": effective_rank(z) for kind, z in test.kinds.items()}
    with findings.timed("kNN"):
        for kind in test.kinds:
            name = f"{prefix}{protocol.knn}/{kind}/top1"
            findings.metrics[name] = knn_top1(known, test, kind, protocol.k, protocol.temperature, model.device)
    with findings.timed("linear probes"):
        found = linear_probes(known, len(splits.val), test, model.num_classes, protocol, model.device)
        findings.metrics |= {f"{prefix}{protocol.linear}/{name}": value for name, value in found.items()}


def linear_probes(
    known: Features, held_out: int, test: Features, num_classes: int, protocol: Protocol, device: torch.device
) -> dict[str, float]:
    """Test accuracies of the linear classifiers that :func:`~experiments.probing.linear_probe.fit_linear` trains.

    Returns:
        ``<kind>/top1`` → share of test images, 0 … 1; ``<kind>/lr`` → the chosen learning rate.
    """
    final, rates = fit_linear(known, held_out, num_classes, protocol, device)
    top1 = {f"{kind}/top1": found[0] for kind, found in final.top1(test).items()}
    return top1 | {f"{kind}/lr": rate for kind, rate in rates.items()}


def supervised_top1(model: Method, data: ImageDataModule, trainer: L.Trainer, epochs: int, seed: int) -> float:
    """Test top-1, 0 … 1, of the same network trained from scratch with labels, end to end.

    The recipe for labels of blockwise self-supervised studies: SGD, momentum 0.9, Nesterov, learning
    rate 0.1 · batch / 128, weight decay 5e-4, cosine; the data module's own augmentation, one view.

    Args:
        model: gives the network.
        data: the data set.
        trainer: gives device and precision.
        epochs: of training.
        seed: of the first weights.
    """
    torch.manual_seed(seed)
    sgd = partial(SGD, lr=0.1 * data.batch_size / 128, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cosine = partial(CosineAnnealingLR, T_max=epochs)
    whole = Backprop(model.make_network, model.image_shape, model.num_classes, optimizer=sgd, scheduler=cosine)
    device = trainer.strategy.root_device.type
    own = silent_trainer(accelerator=device, precision=trainer.precision, max_epochs=epochs)
    own.fit(whole, datamodule=data)
    return own.test(whole, datamodule=data, verbose=False)[0]["test/top1"]


def probe_run(
    model: Method,
    data: ImageDataModule,
    trainer: L.Trainer,
    checkpoint: Path,
    protocol: Protocol,
    blocks: Sequence[int] | None = None,
    random: bool = False,
    supervised_epochs: int = 0,
) -> None:
    """Probe a checkpoint; write down and show what is found.

    Args:
        model: a fresh model of the run's configuration.
        data: the data set.
        trainer: gives device and precision.
        checkpoint: a run folder or a checkpoint file in one.
        protocol: how to judge.
        blocks: numbers of the blocks to probe, from 1; all by default.
        random: probe the fresh network too.
        supervised_epochs: train the same network with labels for so many epochs too; 0 does not.

    Raises:
        RunError: the checkpoint does not fit model or images, or the protocol does not fit the run.
    """
    wanted, saved, findings = chosen_blocks(model, blocks), checkpoint_of(model, checkpoint), Findings()
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
            top1 = supervised_top1(model, data, trainer, supervised_epochs, protocol.seed)
        findings.metrics["supervised/test/top1"] = top1
    show(findings, f"{saved.file}, step {saved.step}: {data.name}, test top-1 %, effective rank")
    record(findings, saved, data.name)
