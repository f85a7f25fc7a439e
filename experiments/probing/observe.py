"""``observe``: what do the hidden layers of a run hold, beside those of the same network trained another way?

Of every layer, on training and test images: a linear probe, the nearest class mean, separation fuzziness, effective
rank, and the alignment with the same layer of a reference run; of every head, the share of redundant training images.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as L
import yaml
from torch import Tensor, nn

from datamodules.base import ImageDataModule
from experiments.probing.features import Features, Splits
from experiments.probing.hidden_layers import Every, Figures, Layers, layer_figures, layers_of, reader, redundancy
from experiments.probing.observe_results import Observed, record, show
from experiments.probing.probe import Protocol, fit_linear
from experiments.run.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    network_differences,
    require_same_images,
    require_same_network,
)
from experiments.run.errors import RunError
from experiments.run.files import CONFIG, SUMMARY
from losses import CrossEntropy, linear_cka
from models.classification import LocalClassification
from models.local_learning import LocalLearning
from models.networks.chain import Chain


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        checkpoint: where its weights come from.
        epoch: after which epoch they were saved, from 1.
        step: their training step.
        layers: its layers.
        logits: images → head → logits, of the heads that classify, if any does.
        sample_losses: logits and labels → what those heads were trained on, per sample.
    """

    checkpoint: Path
    epoch: int
    step: int
    layers: Layers
    logits: Callable[[Tensor], Mapping[str, Tensor]] | None
    sample_losses: Callable[[Tensor, Tensor], Tensor] = field(default_factory=CrossEntropy)


def observe_run(
    model: LocalLearning,
    data: ImageDataModule,
    trainer: L.Trainer,
    checkpoint: Path,
    reference: Path | None,
    every: Every,
    images: int,
    protocol: Protocol,
) -> None:
    """Observe the layers of a checkpoint; write down, draw and show what is found.

    Args:
        model: a fresh model of the run's configuration.
        data: the data set.
        trainer: gives the device.
        checkpoint: a run folder or a checkpoint file in one.
        reference: the same of a run of the same network on the same data, cut in any way or not at all.
        every: what counts as a layer.
        images: at most so many of each split.
        protocol: of the linear probe.

    Raises:
        RunError: a checkpoint does not fit model or images, the reference is of another network or of other data,
            or the images are too few.
    """
    if images < 2 * model.num_classes:
        raise RunError(f"{images} images are too few to judge {model.num_classes} classes: choose --images 2000.")
    device = trainer.strategy.root_device
    networks = [load_run(checkpoint, model.to(device), every)]
    splits = Splits.of(data, trainer).some(images)
    if reference:
        networks.append(load_reference(reference, model, data, networks[0].layers))
    observed, features = zip(*(_observe(network, splits, model, protocol) for network in networks), strict=True)
    if reference:
        _align(observed[0].layers, *features)
    counts = {name: len(getattr(splits, name).dataset) for name in ("train", "val", "test")}
    about = {"network": model.network_name, "dataset": data.name, "every": every, "probe": protocol.linear}
    about |= {"images": counts, "seed": data.seed}
    show(observed, about)
    record(observed, about)


def load_run(path: Path, model: LocalLearning, every: Every) -> Network:
    """The network of a run.

    Raises:
        RunError: the checkpoint is missing, damaged, or of another network or images of another size.
    """
    file = find_checkpoint(path)
    saved = load_checkpoint(file)
    require_same_images(file, saved, model.image_shape)
    require_same_network(file, saved["state_dict"], model)
    model.load_state_dict(saved["state_dict"])
    model.eval()
    origin = file, saved["epoch"] + 1, saved["global_step"]
    if isinstance(model, LocalClassification):
        return Network(*origin, layers_of(model, every), model.block_logits, model.sample_losses)
    return Network(*origin, layers_of(model, every), None)


def load_reference(path: Path, model: LocalLearning, data: ImageDataModule, layers: Layers) -> Network:
    """The same network, trained by any method and cut anywhere: its units are known by their names.

    Args:
        path: a run folder, or a checkpoint file in one.
        model: of the run to compare with.
        data: of that run.
        layers: of that run; the reference's are named and put together alike.

    Raises:
        RunError: it is of another network or of other data.
    """
    file = find_checkpoint(path)
    saved = load_checkpoint(file)
    require_same_images(path, saved, model.image_shape, "reference", "run to compare with")
    if (theirs := _data_set(file)) not in (data.name, type(data).__name__):
        raise RunError(
            f"The reference {path} was trained on {theirs}, the run on {data.name}: both must be on the same."
        )
    chain = model.make_network(model.image_shape, model.num_classes).to(model.device).eval()
    weights = saved["state_dict"]
    units = {re.sub(r"^blocks\.\d+\.", "", name): w for name, w in weights.items() if name.startswith("blocks.")}
    if differences := network_differences(units, chain.units):
        raise RunError(
            f"The reference {path} is of another network than {model.network_name}: {differences[0]} "
            f"({len(differences)} differences). Give a run of the same network, cut in any way or not at all."
        )
    chain.units.load_state_dict(units)
    alike = {
        name: nn.Sequential(OrderedDict((unit, chain.units.get_submodule(unit)) for unit, _ in layer.named_children()))
        for name, layer in layers.items()
    }
    logits = (lambda images: {"final": chain(images)}) if _load_classifier(chain, weights) else None
    return Network(file, saved["epoch"] + 1, saved["global_step"], alike, logits)


def _data_set(checkpoint: Path) -> str:
    """What a run was trained on: its title, of an unfinished run its class."""
    folder = checkpoint.absolute().parents[1]
    if (summary := folder / SUMMARY).is_file():
        return json.loads(summary.read_text())["dataset"]
    return yaml.safe_load((folder / CONFIG).read_text())["data"]["class_path"].rpartition(".")[2]


def _load_classifier(chain: Chain, weights: Mapping[str, Tensor]) -> bool:
    """Load the last head of a checkpoint if it is the network's own classifier."""
    last = max((int(name.split(".")[1]) for name in weights if name.startswith("heads.")), default=0)
    head = {name.removeprefix(f"heads.{last}."): w for name, w in weights.items() if name.startswith(f"heads.{last}.")}
    fits = not network_differences(head, chain.classifier)
    if fits:
        chain.classifier.load_state_dict(head)
    return fits


def _observe(
    network: Network, splits: Splits, model: LocalLearning, protocol: Protocol
) -> tuple[Observed, dict[str, Features]]:
    """Figures of all layers and heads, and the layers' features of the ``train`` and ``test`` images."""
    compute, device, held_out = reader(network.layers), model.device, len(splits.val.dataset)
    known, test = splits.read([splits.train, splits.val], device, compute), splits.read([splits.test], device, compute)
    features = {"train": known[:-held_out], "test": test}
    layers = layer_figures(features["train"], test, "test")
    linear, _ = fit_linear(known, held_out, model.num_classes, protocol, device)
    for split, some in features.items():
        for layer, [top1] in linear.top1(some).items():
            layers[layer][f"{protocol.linear}_{split}"] = top1
    for figures in layers.values():
        figures[f"{protocol.linear}_gap"] = figures[f"{protocol.linear}_train"] - figures[f"{protocol.linear}_test"]
    heads = {}
    if network.logits:
        heads = redundancy(splits.read([splits.train], device, network.logits), network.sample_losses)
    return Observed(network.checkpoint, network.epoch, network.step, layers, heads), features


def _align(figures: Figures, ours: Mapping[str, Features], theirs: Mapping[str, Features]) -> None:
    """Add the alignment of each layer with the reference's."""
    for split in ours:
        for layer, values in ours[split].kinds.items():
            figures[layer][f"cka_{split}"] = linear_cka(values, theirs[split].kinds[layer])
