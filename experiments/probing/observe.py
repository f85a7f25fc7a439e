"""``observe``: what do the hidden layers of a run hold, beside those of the same network trained another way?

Of every layer, on training and test images: a linear probe, the nearest class mean, separation fuzziness, effective
rank, and, beside the same layer of a reference run, alignment and collapse; of every head, the share of redundant
training images. If asked for, what can be recovered behind each block.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as L

from datamodules.base import ImageDataModule
from experiments.probing.features import Features, Splits
from experiments.probing.hidden_layers import Every, layer_metrics, reader, redundancy
from experiments.probing.linear_probe import fit_linear
from experiments.probing.observe_results import Observed, record, show
from experiments.probing.processes import goes_on_alone
from experiments.probing.protocol import Protocol
from experiments.probing.saved_network import Network, load_reference, load_run
from experiments.probing.supervised import recoverable_top1
from experiments.run.errors import RunError
from losses import linear_cka
from models.local_learning import LocalLearning


def observe_run(
    model: LocalLearning,
    data: ImageDataModule,
    trainer: L.Trainer,
    checkpoint: Path,
    reference: Path | None,
    every: Every,
    images: int,
    protocol: Protocol,
    recover_epochs: int,
) -> None:
    """Observe the layers of a checkpoint; write down, draw and show it: :meth:`experiments.trainer.Trainer.observe`.

    Raises:
        RunError: a checkpoint does not fit model or images, the reference is of another network or of other data,
            or the images are too few.
    """
    if images < 2 * model.num_classes:
        raise RunError(f"{images} images are too few to judge {model.num_classes} classes: choose --images 2000.")
    networks = [load_run(checkpoint, model.to(trainer.strategy.root_device), every)]
    splits = Splits.of(data).some(images)
    if reference:
        networks.append(load_reference(reference, model, data, networks[0].layers))
    observed, features = zip(*(_observe(network, splits, model, protocol) for network in networks), strict=True)
    if not goes_on_alone():
        return
    if reference:
        _compare(observed, features, protocol.linear)
    for network, found in zip(networks, observed, strict=True) if recover_epochs else ():
        recovered = recoverable_top1(network.layers, model.make_network, data, trainer, recover_epochs, protocol.seed)
        for layer, top1 in recovered.items():
            found.layers[layer]["recoverable_test"] = top1
    about = {
        "network": model.network_name,
        "dataset": data.name,
        "every": every,
        "probe": protocol.linear,
        "recover_epochs": recover_epochs,
        "images": {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)},
        "seed": data.seed,
    }
    show(observed, about)
    record(observed, about)


def _observe(
    network: Network, splits: Splits, model: LocalLearning, protocol: Protocol
) -> tuple[Observed, dict[str, Features]]:
    """Metrics of all layers and heads, and the layers' features of the ``train`` and ``test`` images."""
    compute, device, held_out = reader(network.layers), model.device, len(splits.val)
    known, test = splits.read([splits.train, splits.val], device, compute), splits.read([splits.test], device, compute)
    features = {"train": known[:-held_out], "test": test}
    layers = layer_metrics(features["train"], test, "test")
    linear, _ = fit_linear(known[:-held_out], known, known[-held_out:], model.num_classes, protocol, device)
    for split, some in features.items():
        for layer, [top1] in linear.accuracy(some).items():
            layers[layer][f"{protocol.linear}_{split}"] = top1
    for metrics in layers.values():
        metrics[f"{protocol.linear}_gap"] = metrics[f"{protocol.linear}_train"] - metrics[f"{protocol.linear}_test"]
    heads = {}
    if network.logits:
        heads = redundancy(splits.read([splits.train], device, network.logits), network.sample_losses)
    return Observed(network.checkpoint, layers, heads), features


def _compare(observed: Sequence[Observed], features: Sequence[Mapping[str, Features]], probe: str) -> None:
    """Add to a run's layers how they are aligned with its reference's, and how far their linear probe is behind."""
    (run, reference), (ours, theirs) = observed, features
    for layer, metrics in run.layers.items():
        for split, some in ours.items():
            metrics[f"cka_{split}"] = linear_cka(some.kinds[layer], theirs[split].kinds[layer])
        metrics["collapse_test"] = reference.layers[layer][f"{probe}_test"] - metrics[f"{probe}_test"]
