"""The run folder: its name, its checkpoints, and whether they can be trusted."""

import contextlib
import fcntl
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from experiments.run.errors import RunError
from experiments.run.files import (  # noqa: F401 (named by others through this file)
    BEST,
    CONFIG,
    LAST,
    METRICS,
    OBSERVATIONS,
    OBSERVATIONS_OVER_TIME,
    OBSERVATIONS_PICTURE,
    PREDICTIONS,
    PREVIOUS,
    PROBE,
    REGIONS,
    SUMMARY,
    UNFINISHED,
)

if TYPE_CHECKING:  # suite and report need names of files, and no torch
    from torch import Tensor, nn

    from models.method import Method

_BEFORE_A_CHECKPOINT = (CONFIG, "config.new", METRICS, f"{METRICS}.kept", "events.out.tfevents.*", UNFINISHED)
"""What a run writes before its first checkpoint."""

_marks: dict[Path, IO[str]] = {}  # of the run folder that this process writes: open and locked
_begun_here: set[Path] = set()  # folders in which nothing is that a run did not write


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


def plain_name(name: str) -> str:
    """The name, if it is one plain component of a path.

    Raises:
        RunError: it is empty, leads elsewhere (``..``, ``/tmp/x``, ``a/b``), or no name of a folder.
    """
    if name in ("", ".", "..") or os.sep in name or "\0" in name:
        raise RunError(f"A run's name is one plain folder name, not {name!r}. Choose where it goes with --runs.")
    return name


def choose(runs: Path, name: str | None, default: str, resume: bool) -> Path:
    """The folder of a run: the named one, or a numbered one under the default name.

    Args:
        runs: folder of all runs.
        name: the name that was asked for, if any.
        default: name to use otherwise; a second run gets ``-2`` and so on.
        resume: whether a run that is there already goes on.

    Raises:
        RunError: the name is none, the named folder is taken or not a run's, or there is nothing to resume.
    """
    if name is not None:
        folder = runs / plain_name(name)
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file. Choose another --name.")
        held = has_checkpoint(folder)
        if held and not resume:
            raise RunError(
                f"{folder} already holds a run. Go on with it by --ckpt_path last, or choose another --name."
            )
        if not held and not (folder / UNFINISHED).is_file() and folder.is_dir() and any(folder.iterdir()):
            raise RunError(
                f"{folder} is not empty, and there is no checkpoint in it to go on from. Empty it, or choose "
                "another --name."
            )
        return folder
    taken = [runs / default]
    while taken[-1].exists():
        taken.append(runs / f"{default}-{len(taken) + 1}")
    return taken[-2] if resume and len(taken) > 1 else taken[-1]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something in a folder to go on from, or a summary."""
    return (folder / SUMMARY).exists() or any((folder / LAST).parent.glob("*.ckpt"))


def create(folder: Path) -> None:
    """Make the folder, see that it can be written, and mark it as that of a living run.

    What a run left there that broke off before its first checkpoint is removed.

    Raises:
        RunError: it cannot be written, or another process is writing it.
    """
    mark = folder / UNFINISHED
    try:
        begun_before, anew = mark.is_file(), not has_checkpoint(folder)
        empty = not folder.exists() or not any(folder.iterdir())
        (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
        file = mark.open("w")
    except OSError as fault:
        raise RunError(
            f"The run folder {folder} cannot be written ({fault.strerror}). Choose another with --runs."
        ) from fault
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        file.close()
        raise RunError(f"The run {folder} is being trained by another process. Choose another --name.") from fault
    _marks[folder] = file
    if anew and (begun_before or empty):
        _begun_here.add(folder)
        _remove_files(folder, keep=UNFINISHED)


def release() -> None:
    """This process writes no run folder any longer: a finished run loses its mark."""
    while _marks:
        folder, file = _marks.popitem()
        if (folder / SUMMARY).is_file():
            (folder / UNFINISHED).unlink(missing_ok=True)
        file.close()
    _begun_here.clear()


def discard_empty(folder: Path) -> None:
    """Remove what this run wrote itself, file by file, if there is nothing to go on from; then the folder, if empty."""
    if folder in _begun_here and not has_checkpoint(folder):
        _remove_files(folder)
        with contextlib.suppress(OSError):  # somebody else's files are in it
            (folder / LAST).parent.rmdir()
            folder.rmdir()


def _remove_files(folder: Path, keep: str = "") -> None:
    """Remove what a run writes before its first checkpoint."""
    for pattern in _BEFORE_A_CHECKPOINT:
        for file in folder.glob(pattern):
            if file.name != keep and file.is_file():
                file.unlink()


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
    import torch

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


def require_same_network(path: Path, weights: "Mapping[str, Tensor]", model: "Method") -> None:
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


def network_differences(weights: "Mapping[str, Tensor]", model: "nn.Module") -> list[str]:
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
