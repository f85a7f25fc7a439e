"""Checkpoints of runs: found, read without executing anything in them, compared with a network."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.errors import RunError
from experiments.run.files import CONFIG, LAST, PREVIOUS
from losses.errors import UsageError
from models.saved import read_checkpoint

if TYPE_CHECKING:  # torch takes seconds to import, and is needed where a checkpoint is read
    from torch import Tensor, nn

    from models.method import Method


def checkpoint_file(path: Path) -> Path:
    """A checkpoint file; of a run folder its last one."""
    return path / LAST if path.is_dir() else path


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that is meant by a run folder (its last one) or by a file in one.

    Raises:
        RunError: there is no such folder or file, or it belongs to no run.
    """
    if not path.exists():
        raise RunError(f"There is no run {path}. Give a run folder, or a checkpoint file in one.")
    file = checkpoint_file(path)
    config = file.absolute().parents[1] / CONFIG
    if not config.is_file():
        raise RunError(f"{path} is no run folder, nor a checkpoint file in one: there is no {config}.")
    return file


def require_same_images(
    path: Path,
    checkpoint: Mapping[str, Any],
    image_shape: Sequence[int],
    what: str = "checkpoint",
    beside: str = "data set given",
) -> None:
    """See that a checkpoint, which a message calls ``what``, was trained on images ``(C, H, W)`` of this size.

    Raises:
        RunError: it was trained on others than those of what it is used ``beside``.
    """
    theirs, ours = ("×".join(map(str, shape)) for shape in (checkpoint.get("image_shape", image_shape), image_shape))
    if theirs != ours:
        raise RunError(
            f"The {what} {path} was trained on images of {theirs}, the {beside} has {ours} (channels × height × "
            "width). Give one with images of the same size."
        )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as :func:`models.saved.read_checkpoint` does.

    Raises:
        RunError: it is missing, damaged or no checkpoint; an intact earlier one is offered.
    """
    if not path.is_file():
        raise RunError(
            f"There is no checkpoint {path}. A run writes its first one at the end of its first epoch; "
            "that of another run is meant by --ckpt_path runs/RUN."
        )
    try:
        return read_checkpoint(path)
    except UsageError as fault:
        raise RunError(f"{fault}{offer_previous(path)}") from fault


def offer_previous(path: Path) -> str:
    """What there is to go on from if a checkpoint is of no use."""
    previous = path.with_name(Path(PREVIOUS).name)
    if path.name == previous.name or not previous.is_file():
        return " No earlier one is there."
    try:
        epoch = read_checkpoint(previous)["epoch"]
    except UsageError:
        return " The one before it is damaged too."
    return f" The one before it, of epoch {epoch + 1}, is good: go on from it with --ckpt_path {previous}"


def require_same_network(path: Path, checkpoint: Mapping[str, Any], model: "Method") -> None:
    """See that a checkpoint's weights are this model's; parts that training dropped are dropped from the model.

    Raises:
        RunError: they are another network's, or another cut's.
    """
    model.take_shape_of(checkpoint)
    if differences := network_differences(checkpoint["state_dict"], model):
        saved = checkpoint.get("arguments", {}).get("_class_path", "").rpartition(".")[2]
        other = f"a {saved}, not of a {own}" if saved != (own := type(model).__name__) and saved else ""
        raise RunError(
            f"The checkpoint {path} is of {other or 'another network or another cut'}: {differences[0]} "
            f"({len(differences)} differences). Use the {CONFIG} of the run that wrote it."
        )


def units(weights: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Parameters and buffers of a checkpoint's blocks under the names that their units have in the uncut network."""
    blocks = {name: weight for name, weight in weights.items() if name.startswith("blocks.")}
    return {re.sub(r"^blocks\.\d+\.", "", name): weight for name, weight in blocks.items()}


def network_differences(weights: Mapping[str, "Tensor"], model: "nn.Module") -> list[str]:
    """In what weights are not a model's: one phrase per parameter or buffer; none if they are."""
    own = model.state_dict()
    differences = [f"it lacks {name}" for name in own.keys() - weights.keys()]
    differences += [f"it has {name}, which the model has not" for name in weights.keys() - own.keys()]
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in own.keys() & weights.keys()}
    differences += [
        f"{name} is {there} there and {here} here" for name, (there, here) in shapes.items() if there != here
    ]
    return sorted(differences)
