"""The networks that ``observe`` looks at: that of a run, and that of its reference."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from torch import Tensor, nn

from datamodules.base import ImageDataModule
from experiments.probing.checkpoint import Checkpoint, checkpoint_of, read_checkpoint
from experiments.probing.features import Compute
from experiments.probing.hidden_layers import Every, Layers, layers_of
from experiments.run.checkpoint import network_differences
from experiments.run.errors import RunError
from experiments.run.files import CONFIG, SUMMARY
from losses import CrossEntropy
from models.classification import LocalClassification
from models.local_learning import LocalLearning
from models.networks.chain import Chain


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        checkpoint: where its weights come from.
        layers: its layers.
        logits: images → head → logits, of the heads that classify, if any does.
        sample_losses: logits and labels → what those heads were trained on, per sample.
    """

    checkpoint: Checkpoint
    layers: Layers
    logits: Compute | None
    sample_losses: Callable[[Tensor, Tensor], Tensor] = field(default_factory=CrossEntropy)


def load_run(path: Path, model: LocalLearning, every: Every) -> Network:
    """The network of a run.

    Raises:
        RunError: the checkpoint is missing, damaged, or of another network or images of another size.
    """
    checkpoint = checkpoint_of(model, path)
    model.load_state_dict(checkpoint.weights)
    model.eval()
    if isinstance(model, LocalClassification):
        return Network(checkpoint, layers_of(model, every), model.block_logits, model.sample_losses)
    return Network(checkpoint, layers_of(model, every), None)


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
    checkpoint = read_checkpoint(path, model.image_shape, "reference", "run to compare with")
    if (theirs := _data_set(checkpoint)) not in (data.name, type(data).__name__):
        raise RunError(
            f"The reference {path} was trained on {theirs}, the run on {data.name}: both must be on the same."
        )
    chain = model.make_network(model.image_shape, model.num_classes).to(model.device).eval()
    blocks = {name: weight for name, weight in checkpoint.weights.items() if name.startswith("blocks.")}
    units = {re.sub(r"^blocks\.\d+\.", "", name): weight for name, weight in blocks.items()}
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
    logits = (lambda images: {"final": chain(images)}) if _load_classifier(chain, checkpoint.weights) else None
    return Network(checkpoint, alike, logits)


def _data_set(checkpoint: Checkpoint) -> str:
    """What a run was trained on: the data set's name, of an unfinished run its class."""
    if (summary := checkpoint.folder / SUMMARY).is_file():
        return json.loads(summary.read_text())["dataset"]
    config = yaml.safe_load((checkpoint.folder / CONFIG).read_text())
    return config["data"]["class_path"].rpartition(".")[2]


def _load_classifier(chain: Chain, weights: Mapping[str, Tensor]) -> bool:
    """Load the last head of a checkpoint if it is the network's own classifier."""
    last = max((int(name.split(".")[1]) for name in weights if name.startswith("heads.")), default=0)
    head = {name.removeprefix(f"heads.{last}."): w for name, w in weights.items() if name.startswith(f"heads.{last}.")}
    fits = not network_differences(head, chain.classifier)
    if fits:
        chain.classifier.load_state_dict(head)
    return fits
