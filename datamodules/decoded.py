"""Image files decoded once and held in memory: how far that is, and where they are kept for the next command."""

import fcntl
import hashlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import __version__ as pillow
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datamodules.batch import Batch
from datamodules.files import DataError

_DECODING = 1
"""To be raised when files are decoded into other pixels than before."""

_PATIENCE, _INTERVAL = 3, {True: 0.2, False: 30}
"""Seconds before a line tells how far it is, and from one to the next, in a terminal or not."""


def shown(batches: DataLoader[Batch], images: int, where: str, quiet: bool) -> Iterator[Tensor]:
    """The images of batches; how far they are is told on stderr if they take longer than some seconds.

    In a terminal the line is drawn anew, in a pipe another one comes every half a minute.
    """
    pace = {"delay": _PATIENCE, "mininterval": _INTERVAL[sys.stderr.isatty()]}
    short = os.path.join(*Path(where).parts[-2:])  # a line too long for the terminal would be cut off at its figures
    with tqdm(desc=f"reading {short}", total=images, unit=" images", leave=False, disable=quiet, **pace) as line:
        for batch in batches:
            yield batch.images
            line.update(len(batch.images))


def gathered(batches: Iterable[Tensor], shape: Sequence[int]) -> Tensor:
    """All images, uint8 ``(N, H, W, C)``; no more memory is taken than they need."""
    images, done = torch.empty(*shape, dtype=torch.uint8), 0
    for batch in batches:
        images[done : done + len(batch)] = batch
        done += len(batch)
    return images


def kept(batches: Iterable[Tensor], shape: Sequence[int], file: Path) -> Tensor:
    """All images, uint8 ``(N, H, W, C)``, mapped from a file, which is written first if it is not there whole.

    Of several processes one writes it, and the others wait.

    Raises:
        DataError: it cannot be written.
    """
    size, part = math.prod(shape), file.with_name(f"{file.name}.part")

    def is_whole() -> bool:
        return file.is_file() and file.stat().st_size == size

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while not is_whole():
            with part.open("ab") as target:
                fcntl.flock(target, fcntl.LOCK_EX)  # a killed process holds none, and what it left is overwritten
                if os.fstat(target.fileno()).st_nlink and not is_whole():  # nobody gave it up, or wrote it, meanwhile
                    _write(batches, target, part, file)
                    break
    except OSError as fault:
        raise DataError(
            f"Decoded images cannot be kept in {file.parent} ({fault.strerror}). Choose another --data.cache."
        ) from fault
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).view(*shape)


def _write(batches: Iterable[Tensor], target: BinaryIO, part: Path, file: Path) -> None:
    """Write a file in one move, or leave nothing."""
    try:
        target.truncate(0)
        for batch in batches:
            target.write(batch.numpy().tobytes())
        target.flush()
        os.fsync(target.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def name_of(files: Iterable[str], *form: object) -> str:
    """A name for these files, as they are now, decoded into this form: other files or another form have another."""
    known = hashlib.sha256(repr((_DECODING, pillow, form)).encode())
    for file in files:
        status = os.stat(file)
        known.update(repr((file, status.st_size, status.st_mtime_ns)).encode())
    return f"{known.hexdigest()[:20]}.images"
