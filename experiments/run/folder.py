"""The run folder: whose it is, what it is called, and whether a run may write it."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from experiments.run.checkpoint import checkpoint_file, find_checkpoint
from experiments.run.errors import RunError
from experiments.run.files import BEST, CONFIG, LAST, METRICS, PART, PREVIOUS, SUMMARY, UNFINISHED

_BEFORE_A_CHECKPOINT = (CONFIG, METRICS, "events.out.tfevents.*")
"""What a run writes before its first checkpoint, besides its mark."""

HALF_WRITTEN = tuple(f"{name}{PART}" for name in (CONFIG, METRICS, SUMMARY, LAST, PREVIOUS, BEST))
"""What a run leaves that was killed while it wrote one of them."""

IN_THE_RUN = {"last": LAST, "best": BEST, "auto": LAST}
"""Checkpoints that a run goes on from by name: ``auto`` means the last one, or a new run if there is none."""

_INHERITED = "LOCAL_LEARNING_RUN_FOLDER"
"""Environment variable that tells the other processes of a run its folder."""

PART_OF_SUITE = "LOCAL_LEARNING_PART_OF_SUITE"
"""Environment variable that tells the runs of a suite that it says itself how to go on."""


class RunFolder:
    """What a run leaves, or will leave. No file of it is ever removed that a run did not write itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun_here = False  # whether all in it was written by a run
        self._made: list[Path] = []  # folders above it that this run has made

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The folder that the options of a command mean.

        It is that of the first process of this run; else that of a finished run to look at (``checkpoint``) or of the
        checkpoint file to go on from (``ckpt_path``); else one below ``runs``.

        Raises:
            RunError: there is no such run, or its name is none, taken or not a run's.
        """
        if process_rank() and _INHERITED in os.environ:
            return cls(Path(os.environ[_INHERITED]))
        if options.get("checkpoint"):
            return cls.around(Path(options["checkpoint"]))
        asked, runs, name = options.get("ckpt_path"), Path(options["runs"]), options["name"]
        if asked and asked not in IN_THE_RUN and name is None:
            file = checkpoint_file(Path(asked)).absolute()
            if file.parent.name == Path(LAST).parent.name:
                return cls(file.parents[1])
        if name is not None:
            return cls(_named(runs / plain_name(name), resume=bool(asked)))
        return cls(_numbered(runs / default_name(options), resume=bool(asked)))

    @classmethod
    def around(cls, checkpoint: Path) -> Self:
        """The folder of a finished run, given itself or by a checkpoint file in it.

        Raises:
            RunError: it belongs to no run.
        """
        return cls(find_checkpoint(checkpoint).absolute().parents[1])

    def hand_down(self) -> None:
        """Tell the folder to the processes that this one will start: they run the same command line."""
        os.environ[_INHERITED] = str(self.path)

    def checkpoint(self, asked: str) -> Path | None:
        """The checkpoint file that is meant: one of this run by name, or by the path of it or of a run folder.

        None for ``auto`` if there is none.
        """
        file = self.path / IN_THE_RUN[asked] if asked in IN_THE_RUN else checkpoint_file(Path(asked))
        return None if asked == "auto" and not file.is_file() else file

    @property
    def is_finished(self) -> bool:
        """Whether a run has come to its end in it."""
        return (self.path / SUMMARY).is_file()

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """While a run writes it: the folder is there, marked and locked; a finished run loses its mark.

        What a run left there that broke off before its first checkpoint is removed.

        Raises:
            RunError: it cannot be written, or another process is writing it.
        """
        mark = self.path / UNFINISHED
        try:
            ours = mark.is_file() or not self.path.exists() or not any(self.path.iterdir())
            anew = ours and not has_checkpoint(self.path)
            self._made = [folder for folder in self.path.parents if not folder.exists()]
            (self.path / LAST).parent.mkdir(parents=True, exist_ok=True)
            file = mark.open("w")
        except OSError as fault:
            raise RunError(
                f"The run folder {self.path} cannot be written ({fault.strerror}). Choose another with --runs."
            ) from fault
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                raise RunError(
                    f"The run {self.path} is being trained by another process. Choose another --name."
                ) from fault
            self._begun_here = anew
            self._remove_files(HALF_WRITTEN + (_BEFORE_A_CHECKPOINT if anew else ()))
            try:
                yield
            except OSError as fault:
                if has_checkpoint(self.path):
                    go_on = f"--name {self.path.name} --ckpt_path last"
                    fault.add_note(f"When it can, go on with the same command and {go_on}.")
                raise
            finally:
                if self.is_finished:
                    mark.unlink(missing_ok=True)

    def discard_empty(self) -> None:
        """Remove what this run wrote itself, file by file, if there is nothing to go on from; then the empty folder."""
        if self._begun_here and not has_checkpoint(self.path):
            self._remove_files((*HALF_WRITTEN, *_BEFORE_A_CHECKPOINT))
            (self.path / UNFINISHED).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else's files are in it
                for folder in ((self.path / LAST).parent, self.path, *self._made):
                    folder.rmdir()

    def _remove_files(self, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            for file in filter(Path.is_file, self.path.glob(pattern)):
                file.unlink()


def process_rank() -> int:
    """0 in the process that a person started, 1, 2, … in those that Lightning starts beside it."""
    return int(os.environ.get("LOCAL_RANK", 0))


def default_name(config: Mapping[str, Any]) -> str:
    """A name that tells runs apart: method, network, data set, K, G, seed."""

    def short(class_path: str) -> str:
        return re.sub(r"(?<=[a-z])(?=[A-Z])(?!Net)", "_", class_path.rpartition(".")[2]).lower()

    model, data = config["model"], config["data"]
    arguments = model.get("init_args") or {}
    parts = [short(model["class_path"])]
    if network := arguments.get("network"):
        made: dict[str, Any] = {"class_path": network.__qualname__} if callable(network) else network
        parts.append(f"{short(made['class_path'])}{(made.get('init_args') or {}).get('depth', '')}")
    parts.append(short(data["class_path"]))
    counts = {"K": arguments.get("num_blocks"), "G": arguments.get("num_groups")}
    parts += [f"{letter}{count}" for letter, count in counts.items() if count is not None]
    return "-".join([*parts, f"seed{config['seed_everything']}"])


def plain_name(name: str) -> str:
    """The name, if it is one plain component of a path.

    Raises:
        RunError: it is empty, or leads elsewhere (``..``, ``/tmp/x``, ``a/b``).
    """
    if name in ("", ".", "..") or os.sep in name or not name.isprintable():
        raise RunError(f"A run's name is one plain folder name, not {name!r}. Choose where it goes with --runs.")
    return name


def _named(folder: Path, resume: bool) -> Path:
    """The folder, if a run may begin in it, or go on: it is not taken, nor another's, nor a file."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file. Choose another --name.")
    held = has_checkpoint(folder)
    if held and not resume:
        raise RunError(f"{folder} already holds a run. Go on with it by --ckpt_path last, or choose another --name.")
    if not held and not (folder / UNFINISHED).is_file() and folder.is_dir() and any(folder.iterdir()):
        raise RunError(
            f"{folder} is not empty, and there is no checkpoint in it to go on from. Empty it, or choose "
            "another --name."
        )
    return folder


def _numbered(first: Path, resume: bool) -> Path:
    """The last folder of this name to go on in, or the next one: a second run gets ``-2`` and so on."""
    taken = [first]
    while taken[-1].exists():
        taken.append(first.with_name(f"{first.name}-{len(taken) + 1}"))
    return taken[-2] if resume and len(taken) > 1 else taken[-1]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something in a folder to go on from, or a summary.

    Of an unfinished run ``best.ckpt`` alone is nothing: it was killed at the end of its first epoch, before last.ckpt.
    """
    files = {*(folder / LAST).parent.glob("*.ckpt"), *folder.glob(SUMMARY)}
    nothing = {folder / BEST} if (folder / UNFINISHED).is_file() else set()
    return bool(files - nothing)
