"""The run folder: its name, its checkpoints, and whether they can be trusted."""

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.errors import RunError
from models import Method

CONFIG, SUMMARY, METRICS, PREDICTIONS = "config.yaml", "summary.json", "metrics.csv", "predictions.csv"
PROBE, REGIONS = "probe.json", "decision_regions.png"
OBSERVATIONS, OBSERVATIONS_PICTURE = "observations.json", "observations.png"
OBSERVATIONS_OVER_TIME = "observations_over_time.png"
LAST, PREVIOUS, BEST = "checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt"


_INHERITED = "LOCAL_LEARNING_RUN_FOLDER"
"""Environment variable that tells the other processes of a run its folder."""

PART_OF_SUITE = "LOCAL_LEARNING_PART_OF_SUITE"
"""Environment variable that tells the runs of a suite that it says itself how to go on."""


def process_rank() -> int:
    """0 in the process that a person started, 1, 2, … in those that Lightning starts beside it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def inherited() -> Path | None:
    """The folder that the first process of this run chose; None in that process."""
    return Path(os.environ[_INHERITED]) if process_rank() and _INHERITED in os.environ else None


def hand_down(folder: Path) -> None:
    """Tell the folder to the processes that this one will start: they run the same command line."""
    os.environ[_INHERITED] = str(folder)


def default_name(config: Mapping[str, Any]) -> str:
    """A name that tells runs apart: method, network, data set, K, G, seed."""

    def short(class_path: str) -> str:
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_path.rpartition(".")[2]).lower()

    model, data = config["model"], config["data"]
    arguments = model.get("init_args") or {}
    parts = [short(model["class_path"])]
    if network := arguments.get("network"):
        depth = (network.get("init_args") or {}).get("depth", "")
        parts.append(f"{short(network['class_path'])}{depth}")
    parts.append(short(data["class_path"]))
    counts = {"K": arguments.get("num_blocks"), "G": arguments.get("num_groups")}
    parts += [f"{letter}{count}" for letter, count in counts.items() if count is not None]
    return "-".join([*parts, f"seed{config['seed_everything']}"])


def choose(runs: Path, name: str | None, default: str, resume: bool) -> Path:
    """The folder of a run: the named one, or a numbered one under the default name.

    Args:
        runs: folder of all runs.
        name: the name that was asked for, if any.
        default: name to use otherwise; a second run gets ``-2`` and so on.
        resume: whether a run that is there already goes on.

    Raises:
        RunError: the named folder is taken, or there is nothing to resume.
    """
    if name:
        folder = runs / name
        if not resume and folder.is_dir() and any(folder.iterdir()):
            state = "already holds a run. Go on with it by --ckpt_path last, or choose"
            if not (folder / LAST).exists():
                state = "is not empty, and there is no checkpoint in it to go on from. Empty it, or choose"
            raise RunError(f"{folder} {state} another --name.")
        return folder
    taken = [runs / default]
    while taken[-1].exists():
        taken.append(runs / f"{default}-{len(taken) + 1}")
    return taken[-2] if resume and len(taken) > 1 else taken[-1]


def create(folder: Path) -> None:
    """Make the folder and see that it can be written.

    Raises:
        RunError: it cannot.
    """
    try:
        (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as fault:
        raise RunError(
            f"The run folder {folder} cannot be written ({fault.strerror}). Choose another with --runs."
        ) from fault


def discard_empty(folder: Path) -> None:
    """Remove a run folder in which there is nothing to go on from: no checkpoint, no summary."""
    if not (folder / LAST).exists() and not (folder / PREVIOUS).exists() and not (folder / SUMMARY).exists():
        shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that is meant by a run folder (its last one) or by a file in one.

    Raises:
        RunError: there is no such folder or file, or it belongs to no run.
    """
    if not path.exists():
        raise RunError(f"There is no run {path}. Give a run folder, or a checkpoint file in one.")
    file = path / LAST if path.is_dir() else path
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
    """See that a checkpoint was trained on images of this size.

    Args:
        path: where it was found.
        checkpoint: what it holds.
        image_shape: ``(C, H, W)`` that are needed.
        what: what the message calls it.
        beside: whose size is needed.

    Raises:
        RunError: it was trained on others.
    """
    theirs, ours = ("×".join(map(str, shape)) for shape in (checkpoint.get("image_shape", image_shape), image_shape))
    if theirs != ours:
        raise RunError(
            f"The {what} {path} was trained on images of {theirs}, the {beside} has {ours} (channels × height × "
            "width). Give one with images of the same size."
        )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        RunError: it is missing, damaged or no checkpoint; an intact earlier one is offered.
    """
    if not path.is_file():
        raise RunError(f"There is no checkpoint {path}. A run writes its first one at the end of its first epoch.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if "state_dict" in checkpoint:
            return checkpoint
        fault: object = "it holds no weights"
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        fault = str(error).splitlines()[0]
    raise RunError(f"The checkpoint {path} is damaged or not one of ours ({fault}).{_offer_previous(path)}")


def _offer_previous(path: Path) -> str:
    previous = path.with_name(Path(PREVIOUS).name)
    if path.name == previous.name or not previous.is_file():
        return " No earlier one is there."
    try:
        epoch = load_checkpoint(previous)["epoch"]
    except RunError:
        return " The one before it is damaged too."
    return f" The one before it, of epoch {epoch + 1}, is good: go on from it with --ckpt_path {previous}"


def require_same_network(path: Path, weights: Mapping[str, torch.Tensor], model: Method) -> None:
    """See that a checkpoint's weights are this model's; parts that training dropped are dropped from the model.

    Raises:
        RunError: they are another network's, or another cut's.
    """
    model.take_shape_of(weights)
    differences = network_differences(weights, model)
    if differences:
        raise RunError(
            f"The checkpoint {path} is of another network or another cut: {differences[0]} "
            f"({len(differences)} differences). Use the {CONFIG} of the run that wrote it."
        )


def network_differences(weights: Mapping[str, torch.Tensor], model: nn.Module) -> list[str]:
    """In what weights are not a model's: one phrase per parameter or buffer; none if they are."""
    own = model.state_dict()
    return sorted(
        [
            *(f"it lacks {name}" for name in own.keys() - weights.keys()),
            *(f"it has {name}, which the model has not" for name in weights.keys() - own.keys()),
            *(
                f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
                for name in own.keys() & weights.keys()
                if own[name].shape != weights[name].shape
            ),
        ]
    )
