import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import SHAPES, WRITERS, everything, fake_images, idx_bytes, write_data_set
from sklearn.datasets import load_digits
from torchvision import datasets as published

import datamodules
from datamodules.digits import Digits
from datamodules.files import DataError, read_pickle

FILES = {
    "MNIST": ("MNIST/raw/train-labels-idx1-ubyte.gz", "MNIST/raw/t10k-images-idx3-ubyte.gz"),
    "FashionMNIST": ("FashionMNIST/raw/train-images-idx3-ubyte.gz", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
    "CIFAR10": ("cifar-10-batches-py/data_batch_4", "cifar-10-batches-py/test_batch"),
    "CIFAR100": ("cifar-100-python/train", "cifar-100-python/test"),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
    "STL10": ("stl10_binary/train_y.bin", "stl10_binary/test_X.bin"),
}
"""Of each set that can be fetched, a file of the training and one of the test split."""
COUNTS = {"CIFAR100": 100, "Imagenet32": 4, "ImageFolder": 3, "ImageNet": 2}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the files of a set and returns its data module."""

    def write(name, **options):
        root = write_data_set(name, tmp_path / "data", monkeypatch)
        return getattr(datamodules, name)(root=str(root), **options)

    return write


@pytest.mark.parametrize("name", SHAPES)
def test_images_are_those_written(written, ready, name):
    module = ready(ready(written(name)), "test")
    for values, expected in zip(everything(module.test_dataloader()), fake_images(name, train=False), strict=True):
        assert np.array_equal(values, expected)
    images, labels = fake_images(name, train=True)
    known = {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    shown = [everything(loader) for loader in (module.train_dataloader(), module.val_dataloader())]
    pairs = [(image, label) for part in shown for image, label in zip(*part, strict=True)]
    assert {image.numpy().tobytes(): int(label) for image, label in pairs} == known


@pytest.mark.parametrize("name", [*WRITERS, "Digits"])
def test_every_set_has_the_same_face(written, ready, name):
    module = ready(ready(written(name, num_workers=0, batch_size=8)), "test")
    channels, height, width = module.image_shape
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        batch = next(iter(loader))
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (height, width, channels)
        assert batch.labels.dtype == torch.int64
        assert batch.labels.shape == batch.images.shape[:1]
        assert 0 <= batch.labels.min() <= batch.labels.max() < module.num_classes
    assert len(module.mean) == len(module.std) == channels
    assert module.num_classes == COUNTS.get(name, 10)
    on_device = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert on_device.images.shape == (8, channels, height, width)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("train", [True, False])
def test_a_file_that_is_altered_cut_off_or_missing_is_named(written, name, train):
    module = written(name)
    path = Path(module.root) / FILES[name][0 if train else 1]

    def fault():
        with pytest.raises(DataError) as caught:
            module.setup("fit" if train else "test")
        return str(caught.value)

    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{path} is damaged: its MD5 sum" in fault()
    path.write_bytes(content[: len(content) // 2])
    assert f"{path} is damaged" in fault()
    path.unlink()
    message = fault()
    assert f"{path} is missing" in message
    assert "--data.download true" in message


# Each set's own


def unpacked(module):
    """The folder of a set's MNIST files, unpacked."""
    folder = Path(module.root, module.name, "raw")
    for packed in folder.iterdir():
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_unpacked_mnist_files_are_read_and_verified_too(written, ready, name):
    module = written(name)
    labels = unpacked(module) / "t10k-labels-idx1-ubyte"
    for values, expected in zip(
        everything(ready(module, "test").test_dataloader()), fake_images(name, train=False), strict=True
    ):
        assert np.array_equal(values, expected)
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match=f"{labels} is damaged: its MD5 sum"):
        getattr(datamodules, name)(root=module.root).setup("test")


def test_the_checksums_of_unpacked_mnist_files_are_those_of_each_set():
    sets = [getattr(datamodules, name) for name in ("MNIST", "FashionMNIST")]
    assert [{f"{file}.gz" for file in one.unpacked} for one in sets] == [
        set(dict(one.source.resources)) for one in sets
    ]
    assert len({md5 for one in sets for md5 in one.unpacked.values()}) == 8


@pytest.mark.parametrize(
    ("file", "values", "complaint"),
    [
        ("images-idx3", np.zeros((39, 28, 28)), "has 39 images, but 40 labels"),
        ("images-idx3", np.zeros((40, 14, 56)), r"has images of shape \(14, 56, 1\) .* = \(28, 28, 1\)"),
        ("images-idx3", np.zeros((0, 28, 28)), "has 0 images, but 40 labels"),
        (
            "labels-idx1",
            np.full(40, 10),
            "has labels from 10 to 10, counted from 0; those of 10 classes go from 0 to 9",
        ),
        ("labels-idx1", np.zeros((40, 1)), "has labels that are no whole numbers"),
    ],
)
def test_mnist_files_packed_anew_are_checked_inside(written, file, values, complaint):
    module = written("MNIST", checksums=False)
    (unpacked(module) / f"t10k-{file}-ubyte").write_bytes(idx_bytes(values))
    with pytest.raises(DataError, match=rf"t10k-{file}-ubyte.* {complaint}"):
        module.setup("test")


def repacked_cifar(module):
    path = Path(module.root, "cifar-10-batches-py", "test_batch")
    batch = read_pickle(path, ("data", "labels"))
    path.write_bytes(pickle.dumps(batch | {"labels": [np.int64(label) for label in batch["labels"]]}, protocol=5))
    return path


def repacked_mnist(module):
    path = Path(module.root, "MNIST", "raw", "t10k-labels-idx1-ubyte.gz")
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=9, mtime=7))
    return path


REPACKED = {"CIFAR10": repacked_cifar, "MNIST": repacked_mnist}


@pytest.mark.parametrize("name", REPACKED)
def test_files_packed_anew_are_read_when_asked_to_and_a_line_says_so(written, ready, capsys, name):
    module = written(name)
    path = REPACKED[name](module)
    with pytest.raises(DataError, match=f"{path} is damaged: .* packed anew on purpose, set --data.checksums false"):
        module.setup("test")
    assert capsys.readouterr().err == ""
    module = ready(getattr(datamodules, name)(root=module.root, checksums=False), "test")
    shown, expected = everything(module.test_dataloader()), fake_images(name, train=False)
    assert all(map(np.array_equal, shown, expected))
    assert f"note: the files of {name} in {module.root} are not compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file", "content", "complaint"),
    [
        (
            "STL10",
            "stl10_binary/test_X.bin",
            bytes(100),
            "test_X.bin does not hold whole images of 3×96×96 bytes",
        ),
        ("STL10", "stl10_binary/test_X.bin", bytes(3 * 96 * 96), "has 1 images, but 40 labels"),
        ("STL10", "stl10_binary/test_y.bin", bytes(40), "test_y.bin has labels from -1 to -1"),
    ],
)
def test_other_things_in_files_packed_anew_are_told(written, name, file, content, complaint):
    module = written(name, checksums=False)
    Path(module.root, file).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        module.setup("test")


def test_svhn_files_packed_anew_are_refused_as_damaged_ones_would_end_python(written):
    with pytest.raises(DataError, match=r"SVHN is always compared .* leave --data\.checksums true"):
        written("SVHN", checksums=False)


@pytest.mark.parametrize(("stage", "lost"), [("test", "train_X.bin"), ("fit", "test_y.bin")])
def test_stl10_needs_no_file_of_the_other_split(written, ready, stage, lost):
    module = written("STL10")
    Path(module.root, "stl10_binary", lost).unlink()
    ready(module, stage)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("CIFAR10", (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
        ("FashionMNIST", (0.2860,), (0.3530,)),
    ],
)
def test_images_are_normalised_by_the_published_figures(name, mean, std):
    module = getattr(datamodules, name)
    assert (*module.mean, *module.std) == pytest.approx((*mean, *std), abs=1e-4)


def test_digits_are_those_of_scikit_learn(ready):
    module = ready(ready(Digits(root="nowhere")), "test")
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    images, labels = (torch.cat(parts) for parts in zip(*map(everything, loaders), strict=True))
    digits = load_digits()
    expected = zip(np.rint(digits.images * 255 / 16).astype(int).reshape(-1, 64).tolist(), digits.target, strict=True)
    assert sorted(zip(images.flatten(1).tolist(), labels.tolist(), strict=True)) == sorted(expected)
    assert (labels[-360:].bincount() - 36).abs().max() <= 1
    scaled = images.double() / 255
    assert scaled.mean() == pytest.approx(Digits.mean[0], abs=0.01)
    assert scaled.std() == pytest.approx(Digits.std[0], abs=0.01)


# Fetching


@pytest.fixture
def fetched(monkeypatch):
    """What was fetched; nothing really is."""
    calls = []
    for name in FILES:
        source = getattr(published, name)
        monkeypatch.setattr(
            source, "__init__", lambda self, root, name=name, **options: calls.append((name, root, options))
        )
    return calls


@pytest.mark.parametrize("name", [*FILES, "Digits", "Imagenet32"])
def test_nothing_is_fetched_unless_asked_for(fetched, name):
    getattr(datamodules, name)(root="nowhere").prepare_data()
    assert fetched == []


@pytest.mark.parametrize("name", FILES)
def test_fetches_into_the_root_when_asked_for(fetched, name):
    getattr(datamodules, name)(root="there", download=True).prepare_data()
    splits = {"SVHN": [{"split": "train"}, {"split": "test"}], "STL10": [{"split": "train"}]}.get(name, [{}])
    assert fetched == [(name, "there", split | {"download": True}) for split in splits]


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN", "STL10"])
def test_fetching_files_that_are_there_needs_no_network(written, name):
    written(name, download=True).prepare_data()
