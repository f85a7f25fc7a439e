"""Reading published data files: every fault ends in one sentence that names the file."""

import codecs
import gzip
import io
import math
import pickle
import re
import struct
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets.utils import check_integrity


class DataError(RuntimeError):
    """A data set is missing, damaged or not what was asked for; the message says what to do."""

    def __init__(self, message: str) -> None:
        # From a loader's worker process torch hands on the whole traceback as the message.
        super().__init__(message.rpartition("DataError: ")[2].strip())


@cache
def note(message: str) -> None:
    """Say once what a person should know."""
    print(f"note: {message}", file=sys.stderr)


def require(path: Path, md5: str | None = None, fetchable: bool = True, otherwise: str = "") -> Path:
    """The path, if the file is there and, where a checksum is known, unaltered.

    Args:
        path: the file.
        md5: its published checksum, if there is one.
        fetchable: whether ``download`` can fetch it, for the message.
        otherwise: what else can be done about another checksum, for the message.

    Raises:
        DataError: the file is missing, or its MD5 sum is not the published one.
    """
    if not path.is_file():
        fetch = ", or let the data set be fetched with --data.download true" if fetchable else ""
        raise DataError(
            f"The data file {path.absolute()} is missing. Put it there, or point --data.root elsewhere{fetch}."
        )
    if md5 is not None and not check_integrity(str(path), md5):
        raise DataError(
            f"The data file {path} is damaged: its MD5 sum is not the published {md5}. "
            f"Delete it and fetch it again{otherwise}."
        )
    return path


def require_folder(path: Path, what: str) -> Path:
    """The path, if it is a folder.

    Raises:
        DataError: it is not.
    """
    if not path.is_dir():
        raise DataError(
            f"The folder {path.absolute()} ({what}) is missing. Put the data there, or point --data.root elsewhere."
        )
    return path


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes (the format of MNIST), gzipped or not.

    Raises:
        DataError: it is no IDX file, or not as long as its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    except (OSError, EOFError, zlib.error, struct.error) as fault:
        raise DataError(f"The data file {path} is damaged ({fault}). Delete it and fetch it again.") from fault
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if zeros != 0 or kind != 0x08 or len(values) != math.prod(shape):
        raise DataError(
            f"The data file {path} is damaged: its header promises {shape} bytes, {len(values)} follow. "
            "Delete it and fetch it again."
        )
    return values.reshape(shape)


def planes(values: object, image_shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """Bytes, of each image one colour after the other → uint8 ``(N, *image_shape)``.

    Raises:
        DataError: they are no bytes, or not of whole images; ``path`` is named.
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8 or values.size % math.prod(image_shape):
        shape = "×".join(map(str, image_shape))
        raise DataError(f"The data file {path} does not hold whole images of {shape} bytes.")
    return values.reshape(-1, *image_shape)


def labels_from(values: object, path: Path, first: int = 0) -> np.ndarray:
    """Labels as a data file counts them, from ``first`` on → int64 ``(N,)``, counted from 0.

    Raises:
        DataError: they are no list of whole numbers; ``path`` is named.
    """
    try:
        labels = np.asarray(values)
    except ValueError:  # lists of different lengths
        labels = np.empty(0, object)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"The data file {path} has labels that are no whole numbers.")
    return labels.astype(np.int64) - first


class _Dtype:
    """Stands in for ``numpy.dtype`` in a pickle: a plain type by name, and no more of its state."""

    def __init__(self, name: str, *_: object) -> None:
        if not re.fullmatch("[biuf][1248]", name):
            raise pickle.UnpicklingError(f"it asks for an array of {name!r}, not of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])

    def read(self, content: str | bytes) -> np.ndarray:
        """The numbers whose bytes these are, in an array that can be written to; Python 2 knew bytes as text."""
        held = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(bytearray(held), self.dtype)


class _Array:
    """Stands in for ``numpy.ndarray`` in a pickle; its bytes are read as numbers of a plain type."""

    values = np.empty(0)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.values = kind.read(content).reshape(shape, order="F" if fortran else "C")


class _ArrayFromBuffer(_Array):
    """The same as protocol 5 writes it."""

    def __init__(self, content: bytes, kind: _Dtype, shape: Sequence[int], order: Any, *_: object) -> None:
        self.values = kind.read(content).reshape(shape, order=order)


class _Scalar:
    """Stands in for numpy's numbers in a pickle."""

    def __new__(cls, kind: _Dtype, content: str | bytes) -> Any:
        return kind.read(content)[0]


class _PlainUnpickler(pickle._Unpickler):
    """Builds arrays, strings, numbers and containers; anything else is refused before it exists.

    numpy's own unpickling is not called: it believes an array's description, also a forged one. Python's own form of
    the unpickler is used: that in C takes tens of GB of memory if one byte of a place in its memo is flipped.
    """

    _stand_ins: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _ArrayFromBuffer,
        ("numpy._core.numeric", "_frombuffer"): _ArrayFromBuffer,
        ("numpy.core.multiarray", "scalar"): _Scalar,
        ("numpy._core.multiarray", "scalar"): _Scalar,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name; all else is refused."""
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image data set needs")
        return self._stand_ins[module, name]


def read_pickle(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a pickled batch (CIFAR, Imagenet32) without letting it run any code.

    Args:
        path: the file.
        keys: entries that it must have.

    Raises:
        DataError: the file is truncated, asks for anything but arrays, strings, numbers and
            containers, or lacks one of the keys.
    """
    try:
        batch = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as fault:  # a damaged pickle can raise anything, MemoryError among it
        raise DataError(
            f"The data file {path} is damaged or not a data batch ({fault}). Nothing in it was run. "
            "Delete it and fetch it again."
        ) from fault
    if not isinstance(batch, dict) or any(key not in batch for key in keys):
        raise DataError(f"The data file {path} is not a data batch: it lacks {' or '.join(keys)}.")
    return {key: value.values if isinstance(value, _Array) else value for key, value in batch.items()}
