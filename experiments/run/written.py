"""Files that are there whole or not at all, whenever the process that writes them is killed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from typing_extensions import override

from experiments.run.files import PART


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have faults say which file they are about: that of a full disk does not."""
    try:
        yield
    except OSError as fault:
        fault.filename = fault.filename or str(path)
        raise


@contextlib.contextmanager
def in_one_move(path: Path) -> Iterator[Path]:
    """A path beside the one given, to write to; what is written takes its place when it is on the disk.

    Beside, because only within one file system a file can be moved in one step.
    """
    part = path.with_name(path.name + PART)
    try:
        with naming(path):
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()  # there after a fault; and if both were names of one file, which no move changes


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to write checkpoints, but beside their place, not in the folder for temporary files.

    From there Lightning moves them, which across file systems is a copy over the old file: a run killed within it
    would lose both.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with in_one_move(target) as part:
            _save(checkpoint, part)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """``torch.save``, whose faults are those of the disk: its own say that an archive broke off, not why.

    Raises:
        OSError: the disk is full, say.
    """
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as fault:
            if isinstance(fault.__context__, OSError):
                raise fault.__context__ from None
            raise
