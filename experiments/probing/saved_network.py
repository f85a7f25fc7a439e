"""The networks that are looked at, that of a run and that of its reference: found, read, and seen to fit."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from datamodules.base import ImageDataModule
from experiments.probing.features import Compute
from experiments.probing.hidden_layers import Every, Layers, layers_of
from experiments.run.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    network_differences,
    require_same_images,
    require_same_network,
    units,
)
from experiments.run.errors import RunError
from experiments.run.files import CONFIG, SUMMARY
from experiments.run.reading import read_config, read_summary
from losses import CrossEntropy
from models.classification import LocalClassification
from models.local_learning import LocalLearning
from models.method import Method
from models.networks.chain import Chain
from models.networks.sequential import build_chain


@dataclass(frozen=True)
class Checkpoint:
    """What a run has saved in a file."""

    file: Path
    content: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """The epoch (from 1) after which it was saved."""
        return self.content["epoch"] + 1

    @property
    def step(self) -> int:
        """The training step after which it was saved."""
        return self.content["global_step"]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name."""
        return self.content["state_dict"]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.file.absolute().parents[1]

    @property
    def dataset(self) -> str:
        """What it was trained on: the data set's name, of an unfinished run its class."""
        if (summary := self.folder / SUMMARY).is_file():
            return read_summary(summary)["dataset"]
        data = read_config(self.folder / CONFIG).get("data") or {}
        return data.get("class_path", "?").rpartition(".")[2]


def _read(path: Path, image_shape: Sequence[int], *words: str) -> Checkpoint:
    """The checkpoint, of images of this size, that a run folder or a file in one means; ``words`` name it in faults."""
    file = find_checkpoint(path)
    saved = load_checkpoint(file)
    require_same_images(path if words else file, saved, image_shape, *words)
    return Checkpoint(file, saved)


def checkpoint_of(model: Method, path: Path) -> Checkpoint:
    """The checkpoint meant by a run folder (its last one) or by a file in one; the model drops what training dropped.

    Raises:
        RunError: it is missing, damaged, of images of another size, or of another network or another cut.
    """
    checkpoint = _read(path, model.image_shape)
    require_same_network(checkpoint.file, checkpoint.content, model)
    return checkpoint


class Network(NamedTuple):
    """A trained network; of those of its heads that classify, the logits and what they were trained on."""

    checkpoint: Checkpoint
    layers: Layers
    logits: Compute | None
    sample_losses: Callable[[Tensor, Tensor], Tensor]


def load_run(path: Path, model: LocalLearning, every: Every) -> Network:
    """The network of a run, as far as its blocks have learned; faults as those of :func:`checkpoint_of`."""
    checkpoint = checkpoint_of(model, path)
    model.load_state_dict(checkpoint.weights)
    model.eval()
    layers = layers_of(model, every, len(model.learned_blocks))
    if isinstance(model, LocalClassification):
        return Network(checkpoint, layers, model.block_logits, model.sample_losses)
    return Network(checkpoint, layers, None, CrossEntropy())


def load_reference(path: Path, model: LocalLearning, data: ImageDataModule, layers: Layers) -> Network:
    """The same network, trained by any method and cut anywhere: its units are known by their names.

    Model, data and layers are those of the run to compare with; the reference's layers are put together alike.

    Raises:
        RunError: it is of another network or of other data.
    """
    checkpoint = _read(path, model.image_shape, "reference", "run to compare with")
    if (theirs := checkpoint.dataset) not in (data.name, type(data).__name__):
        raise RunError(
            f"The reference {path} was trained on {theirs}, the run on {data.name}: both must be on the same."
        )
    chain = build_chain(model.make_network, model.image_shape, model.num_classes).to(model.device).eval()
    weights = units(checkpoint.weights)
    if differences := network_differences(weights, chain.units):
        raise RunError(
            f"The reference {path} is of another network than {model.network_name}: {differences[0]} "
            f"({len(differences)} differences). Give a run of the same network, cut in any way or not at all."
        )
    chain.units.load_state_dict(weights)
    alike = {
        name: nn.Sequential(OrderedDict((unit, chain.units.get_submodule(unit)) for unit, _ in layer.named_children()))
        for name, layer in layers.items()
    }
    logits = (lambda images: {"final": chain(images)}) if _load_classifier(chain, checkpoint.weights) else None
    return Network(checkpoint, alike, logits, CrossEntropy())


def _load_classifier(chain: Chain, weights: Mapping[str, Tensor]) -> bool:
    """Load the last head of a checkpoint if it is the network's own classifier."""
    last = max((int(name.split(".")[1]) for name in weights if name.startswith("heads.")), default=0)
    head = {name.removeprefix(f"heads.{last}."): w for name, w in weights.items() if name.startswith(f"heads.{last}.")}
    fits = not network_differences(head, chain.classifier)
    if fits:
        chain.classifier.load_state_dict(head)
    return fits
