"""Tiny data sets in exactly the published file formats, for tests that must not download anything."""

import gzip
import hashlib
import io
import pickle
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torchvision import datasets

from datamodules import mnist
from datamodules.batch import Batch
from datamodules.folders import ImageFolder, ImageNet
from datamodules.imagenet32 import Imagenet32

SHAPES = {
    "MNIST": (28, 28, 1),
    "FashionMNIST": (28, 28, 1),
    "CIFAR10": (32, 32, 3),
    "CIFAR100": (32, 32, 3),
    "SVHN": (32, 32, 3),
    "STL10": (96, 96, 3),
    "Imagenet32": (32, 32, 3),
}
CLASSES = {"CIFAR100": 4, "Imagenet32": 4}  # the first few of many; 10 in the other sets
IMAGES_PER_CLASS = {True: 20, False: 4}  # train, test

FOLDER_CLASSES = {"ImageFolder": ("ant", "bee", "cat"), "ImageNet": ("n01440764", "n01443537")}
FOLDER_IMAGES_PER_CLASS = {"ImageFolder": {True: 12, False: 4}, "ImageNet": {True: 30, False: 4}}
FOLDER_SIZE = {"ImageFolder": (40, 32), "ImageNet": (64, 48)}  # width, height


def write_data_set(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a tiny data set below ``root``, and make its checksums and counts the expected ones.

    Args:
        name: class name of the data module, for example ``CIFAR10``.
        root: an empty folder.
        monkeypatch: takes the published checksums and counts back after the test.

    Returns:
        The value for the data module's ``root``.
    """
    if name in WRITERS:
        WRITERS[name](name, root, monkeypatch)
    return root


def fake_images(name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """The uint8 images ``(N, H, W, C)`` and the labels from 0 that the named set's files are written from."""
    generator, classes = np.random.default_rng(int(train)), CLASSES.get(name, 10)
    count = classes * IMAGES_PER_CLASS[train]
    images = generator.integers(0, 256, (count, *SHAPES[name]), dtype=np.uint8)
    return images, generator.permutation(np.arange(count) % classes)


def everything(loader: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """All images and all labels that a loader gives."""
    images, labels, *_ = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def _write_mnist(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources, unpacked = [], {}
    for prefix, train in (("train", True), ("t10k", False)):
        images, labels = fake_images(name, train)
        for kind, values in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
            path, content = root / name / "raw" / f"{prefix}-{kind}-ubyte.gz", idx_bytes(values)
            _write(path, gzip.compress(content, compresslevel=1, mtime=0))
            resources.append((path.name, _md5(path)))
            unpacked[path.stem] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(getattr(datasets, name), "resources", resources)
    monkeypatch.setattr(getattr(mnist, name), "unpacked", unpacked)


def idx_bytes(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes: two zeros, the type, the number of dimensions, their sizes, the values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 0x08, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def _write_cifar(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = getattr(datasets, name)
    for attribute, train in (("train_list", True), ("test_list", False)):
        images, labels = fake_images(name, train)
        files, published = getattr(source, attribute), []
        for number, (file, _) in enumerate(files, start=1):
            chosen = slice((number - 1) * len(labels) // len(files), number * len(labels) // len(files))
            batch = {
                "batch_label": f"batch {number} of {len(files)}",
                "data": rows_of_bytes(images[chosen]),
                "filenames": [f"image_{i}.png" for i in range(len(labels[chosen]))],
            }
            if name == "CIFAR10":
                batch["labels"] = labels[chosen].tolist()
            else:
                batch |= {"fine_labels": labels[chosen].tolist(), "coarse_labels": [0] * len(labels[chosen])}
            path = root / source.base_folder / file
            _write(path, python2_pickle(batch))
            published.append([file, _md5(path)])
        monkeypatch.setattr(source, attribute, published)
    path = root / source.base_folder / source.meta["filename"]
    _write(path, python2_pickle({source.meta["key"]: [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(source, "meta", source.meta | {"md5": _md5(path)})


def rows_of_bytes(images: np.ndarray) -> np.ndarray:
    """Images ``(N, H, W, C)`` as rows: all red, then all green, then all blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


class _Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its one kind of string."""

    dispatch: ClassVar[dict[type, Callable]] = dict(pickle._Pickler.dispatch)

    def _save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = _save_string


def python2_pickle(batch: Any) -> bytes:
    """Pickle as Python 2 with the numpy of its days did."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(batch)
    return _old_numpy(file.getvalue())


def python3_pickle(batch: Any) -> bytes:
    """Pickle as Python 3.5 with the numpy of its days did."""
    return _old_numpy(pickle.dumps(batch, protocol=3))


def _old_numpy(content: bytes) -> bytes:
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _write_svhn(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = {}
    for split, train in (("train", True), ("test", False)):
        images, labels = fake_images(name, train)
        url, file, _ = datasets.SVHN.split_list[split]
        root.mkdir(parents=True, exist_ok=True)
        written_labels = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]  # the digit 0 has label 10
        savemat(root / file, {"X": images.transpose(1, 2, 3, 0), "y": written_labels})
        published[split] = [url, file, _md5(root / file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", datasets.SVHN.split_list | published)


def _write_stl10(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / datasets.STL10.base_folder
    for split, train in (("train", True), ("test", False)):
        images, labels = fake_images(name, train)
        _write(folder / f"{split}_X.bin", images.transpose(0, 3, 2, 1).tobytes())  # each colour column by column
        _write(folder / f"{split}_y.bin", (labels + 1).astype(np.uint8).tobytes())
    _write(folder / "unlabeled_X.bin", bytes(2 * 3 * 96 * 96))
    _write(folder / "class_names.txt", "".join(f"class {i}\n" for i in range(10)).encode())
    for attribute in ("train_list", "test_list"):
        published = [[file, _md5(folder / file)] for file, _ in getattr(datasets.STL10, attribute)]
        monkeypatch.setattr(datasets.STL10, attribute, published)


def _write_imagenet32(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = fake_images(name, train=True)
    files = Imagenet32.train_files
    for file, some, theirs in zip(files, np.split(images, len(files)), np.split(labels, len(files)), strict=True):
        mean = some.mean(axis=0).reshape(-1)
        batch = {"data": rows_of_bytes(some), "labels": (theirs + 1).tolist(), "mean": mean}
        _write(root / file, python3_pickle(batch))
    monkeypatch.setattr(Imagenet32, "train_count", len(labels))
    monkeypatch.setattr(Imagenet32, "num_classes", CLASSES[name])
    images, labels = fake_images(name, train=False)
    _write(root / "val_data", python3_pickle({"data": rows_of_bytes(images), "labels": (labels + 1).tolist()}))
    counts = {len(labels): "Imagenet32", len(labels) - 1: "Imagenet32-49999"}
    monkeypatch.setattr(Imagenet32, "test_counts", counts)


def _write_folders(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JPEG files of noise; the classes differ in brightness."""
    generator, (width, height) = np.random.default_rng(0), FOLDER_SIZE[name]
    module, suffix = {"ImageFolder": (ImageFolder, ".jpg"), "ImageNet": (ImageNet, ".JPEG")}[name]
    for folder, train in zip(module.folders, (True, False), strict=True):
        for label, class_name in enumerate(FOLDER_CLASSES[name]):
            (root / folder / class_name).mkdir(parents=True)
            for number in range(FOLDER_IMAGES_PER_CLASS[name][train]):
                noise = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
                path = root / folder / class_name / f"{class_name}_{number:03}{suffix}"
                Image.fromarray(noise + np.uint8(80 * label)).save(path, "JPEG", quality=90)
    monkeypatch.setattr(ImageNet, "num_classes", len(FOLDER_CLASSES["ImageNet"]))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


WRITERS: dict[str, Callable[[str, Path, pytest.MonkeyPatch], None]] = {
    "MNIST": _write_mnist,
    "FashionMNIST": _write_mnist,
    "CIFAR10": _write_cifar,
    "CIFAR100": _write_cifar,
    "SVHN": _write_svhn,
    "STL10": _write_stl10,
    "Imagenet32": _write_imagenet32,
    "ImageFolder": _write_folders,
    "ImageNet": _write_folders,
}
"""Of the data sets that are read from files; all others need none."""
