"""``probe``: how good are the frozen features of every block of a run?

A linear classifier and a k-nearest-neighbour vote on the features of each block, which are computed
once, un-augmented, in evaluation mode. The test split is used for the final figures only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules.base import ImageDataModule
from experiments.measure.silent import silent_trainer
from experiments.probing.features import Features, Splits, extract
from experiments.probing.knn import knn_top1
from experiments.probing.linear_probe import LinearProbe
from experiments.probing.probe_results import Figures, record, show
from experiments.run.checkpoint import find_checkpoint, load_checkpoint, require_same_images, require_same_network
from experiments.run.errors import RunError
from losses import effective_rank
from models.method import Method
from models.methods.backprop import Backprop


@dataclass(frozen=True)
class Protocol:
    """How features are judged.

    Attributes:
        epochs: of a linear classifier.
        learning_rates: of which the best on the validation images is taken, for each classifier.
        batch_size: images per step.
        k: number of neighbours.
        temperature: of their votes.
        seed: of first weights and shuffling.

    Raises:
        RunError: no learning rate.
    """

    epochs: int = 100
    learning_rates: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
    batch_size: int = 256
    k: int = 200
    temperature: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learning_rates:
            raise RunError("There is no learning rate to choose from: give --learning_rates [0.03,0.1,0.3,1].")

    @property
    def linear(self) -> str:
        """What metrics call the linear probe."""
        return f"probe_lin{self.epochs}"

    @property
    def knn(self) -> str:
        """What metrics call the vote."""
        return f"knn_k{self.k}_t{self.temperature:g}"


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
    model: Method, splits: Splits, blocks: Sequence[int], protocol: Protocol, figures: Figures, prefix: str = ""
) -> None:
    """Probe some blocks of one network; nothing in it changes.

    Args:
        model: the network, on the device to compute on.
        splits: the images.
        blocks: numbers of the blocks, from 1.
        protocol: how to judge.
        figures: what is found is added here.
        prefix: put before the metrics' names.
    """
    with figures.timed("extraction"):
        known = extract(model, splits, [splits.train, splits.val], blocks).near(model.device)
        test = extract(model, splits, [splits.test], blocks).near(model.device)
    figures.images += len(known) + len(test)
    with figures.timed("ranks"):
        figures.metrics |= {f"{prefix}effective_rank/{kind}": effective_rank(z) for kind, z in test.kinds.items()}
    with figures.timed("kNN"):
        for kind in test.kinds:
            name = f"{prefix}{protocol.knn}/{kind}/top1"
            figures.metrics[name] = knn_top1(known, test, kind, protocol.k, protocol.temperature, model.device)
    with figures.timed("linear probes"):
        held_out = len(splits.val.dataset)
        found = linear_probes(known, held_out, test, model.num_classes, protocol, model.device)
        figures.metrics |= {f"{prefix}{protocol.linear}/{name}": value for name, value in found.items()}


def linear_probes(
    known: Features, held_out: int, test: Features, num_classes: int, protocol: Protocol, device: torch.device
) -> dict[str, float]:
    """Test accuracies of the linear classifiers that :func:`fit_linear` trains.

    Returns:
        ``<kind>/top1`` → share of test images, 0 … 1; ``<kind>/lr`` → the chosen learning rate.
    """
    final, rates = fit_linear(known, held_out, num_classes, protocol, device)
    top1 = {f"{kind}/top1": found[0] for kind, found in final.top1(test).items()}
    return top1 | {f"{kind}/lr": rate for kind, rate in rates.items()}


def fit_linear(
    known: Features, held_out: int, num_classes: int, protocol: Protocol, device: torch.device
) -> tuple[LinearProbe, dict[str, float]]:
    """Choose a learning rate per kind of features, train with it.

    Args:
        known: what is learned from: training images, then those held out for validation.
        held_out: number of the latter. While a learning rate is chosen they are not learned from; after
            that they are.
        num_classes: number of classes.
        protocol: learning rates, epochs, batch size.
        device: where to train.

    Returns:
        The classifiers after their last epoch, and kind → the chosen learning rate.
    """
    widths = {kind: values.shape[1] for kind, values in known.kinds.items()}

    def fit(features: Features, rates: Mapping[str, Sequence[float]]) -> LinearProbe:
        linear = LinearProbe(widths, rates, num_classes, device, protocol.seed)
        return linear.fit(features, protocol.epochs, protocol.batch_size)

    tried = fit(known[:-held_out], dict.fromkeys(widths, protocol.learning_rates)).top1(known[-held_out:])
    rates = {kind: protocol.learning_rates[top1.index(max(top1))] for kind, top1 in tried.items()}
    return fit(known, {kind: [rate] for kind, rate in rates.items()}), rates


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
    path = find_checkpoint(checkpoint)
    saved, wanted, figures = load_checkpoint(path), chosen_blocks(model, blocks), Figures()
    require_same_images(path, saved, model.image_shape)
    require_same_network(path, saved["state_dict"], model)
    splits = Splits.of(data, trainer)
    if protocol.k > (known := len(splits.train.dataset) + len(splits.val.dataset)):
        raise RunError(f"k is {protocol.k}, but only {known} images can be neighbours: choose --k up to that.")
    model.to(trainer.strategy.root_device)
    if random:  # the weights that the run began with
        probe_network(model, splits, wanted, protocol, figures, "random/")
    model.load_state_dict(saved["state_dict"])
    probe_network(model, splits, wanted, protocol, figures)
    if supervised_epochs:
        with figures.timed("supervised training"):
            top1 = supervised_top1(model, data, trainer, supervised_epochs, protocol.seed)
        figures.metrics["supervised/test/top1"] = top1
    show(figures, f"{path}, step {saved['global_step']}: {data.name}, test top-1 %, effective rank")
    record(figures, path, saved, data.name)
