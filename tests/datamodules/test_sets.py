import gzip
import os

import numpy as np
import pytest
import torch
from fake_data import SHAPES, WRITERS, fake_images, idx_bytes, python2_pickle, write_data_set
from sklearn.datasets import load_digits
from torchvision import datasets as published

import datamodules
from datamodules.cifar import CIFAR10
from datamodules.digits import Digits
from datamodules.files import DataError
from datamodules.mnist import MNIST, FashionMNIST

IN_MEMORY = list(SHAPES)
ALL = [*WRITERS, "Digits"]
FILES = {
    "MNIST": ("MNIST/raw/train-labels-idx1-ubyte.gz", "MNIST/raw/t10k-images-idx3-ubyte.gz"),
    "FashionMNIST": ("FashionMNIST/raw/train-images-idx3-ubyte.gz", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
    "CIFAR10": ("cifar-10-batches-py/data_batch_4", "cifar-10-batches-py/test_batch"),
    "CIFAR100": ("cifar-100-python/train", "cifar-100-python/test"),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
    "STL10": ("stl10_binary/train_y.bin", "stl10_binary/test_X.bin"),
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the files of a set and returns its data module."""

    def write(name, **options):
        root = write_data_set(name, tmp_path / "data", monkeypatch)
        return getattr(datamodules, name)(root=str(root), **options)

    return write


def everything(loader):
    batches = list(loader)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


@pytest.mark.parametrize("name", IN_MEMORY)
def test_training_and_validation_images_are_those_written(written, ready, name):
    module = ready(written(name))
    images, labels = fake_images(name, train=True)
    shown = {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    seen = {}
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for image, label in zip(*everything(loader), strict=True):
            seen[image.numpy().tobytes()] = int(label)
    assert seen == shown


@pytest.mark.parametrize("name", IN_MEMORY)
def test_test_images_are_those_written_value_by_value(written, ready, name):
    got = everything(ready(written(name), "test").test_dataloader())
    for values, expected in zip(got, fake_images(name, train=False), strict=True):
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("name", ALL)
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
    on_device = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert on_device.images.shape == (8, channels, height, width)


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_batches(written, ready, name):
    module = written(name, num_workers=0, batch_size=8)

    def loaded(seed):
        module.seed = seed
        torch.manual_seed(0)
        return everything(ready(module).train_dataloader())

    first, again, other = loaded(0), loaded(0), loaded(1)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "SVHN", "STL10", "CIFAR10", "CIFAR100"])
def test_published_counts_of_classes_and_shapes(name):
    module = getattr(datamodules, name)
    assert module.num_classes == (100 if name == "CIFAR100" else 10)
    height, width, channels = SHAPES[name]
    assert module.image_shape == (channels, height, width)


def fault_of_loading(module, train):
    with pytest.raises(DataError) as caught:
        module.setup("fit" if train else "test")
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("train", [True, False])
def test_a_missing_file_is_named(written, name, train):
    module = written(name)
    path = os.path.join(module.root, FILES[name][0 if train else 1])
    os.remove(path)
    message = fault_of_loading(module, train)
    assert f"{path} is missing" in message
    assert "--data.download true" in message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("train", [True, False])
def test_an_altered_file_is_named(written, name, train):
    module = written(name)
    path = os.path.join(module.root, FILES[name][0 if train else 1])
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    message = fault_of_loading(module, train)
    assert f"{path} is damaged" in message
    assert "MD5" in message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("train", [True, False])
def test_a_file_that_was_cut_off_is_named(written, name, train):
    module = written(name)
    path = os.path.join(module.root, FILES[name][0 if train else 1])
    os.truncate(path, os.path.getsize(path) // 2)
    assert f"{path} is damaged" in fault_of_loading(module, train)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_an_empty_root_is_named(tmp_path, name):
    assert str(tmp_path) in fault_of_loading(getattr(datamodules, name)(root=str(tmp_path)), train=True)


# Each set's own


def test_unpacked_mnist_files_are_read_too(written, ready):
    module = written("MNIST")
    raw = os.path.join(module.root, "MNIST", "raw")
    for packed in os.listdir(raw):
        with gzip.open(os.path.join(raw, packed)) as source, open(os.path.join(raw, packed[:-3]), "wb") as target:
            target.write(source.read())
        os.remove(os.path.join(raw, packed))
    images, labels = everything(ready(module, "test").test_dataloader())
    expected, expected_labels = fake_images("MNIST", train=False)
    assert np.array_equal(images, expected)
    assert np.array_equal(labels, expected_labels)


@pytest.mark.parametrize("shape", [(39, 28, 28), (40, 14, 56)], ids=["one image too few", "other image size"])
def test_mnist_images_and_labels_that_do_not_belong_together_are_refused(written, shape):
    module = written("MNIST")
    with open(os.path.join(module.root, "MNIST", "raw", "t10k-images-idx3-ubyte"), "wb") as file:
        file.write(idx_bytes(np.zeros(shape, np.uint8)))
    message = fault_of_loading(module, train=False)
    assert "MNIST files do not belong together" in message
    assert "40 labels" in message


def test_mnist_and_fashion_mnist_may_share_a_root(tmp_path, monkeypatch, ready):
    for name in ("MNIST", "FashionMNIST"):
        write_data_set(name, tmp_path, monkeypatch)
    os.remove(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz")
    ready(FashionMNIST(root=str(tmp_path)), "test")
    with pytest.raises(DataError, match="MNIST/raw/t10k-labels"):
        ready(MNIST(root=str(tmp_path)), "test")


def test_cifar_batches_of_another_form_are_named(tmp_path, monkeypatch, ready):
    write_data_set("CIFAR10", tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(python2_pickle({"data": np.zeros((4, 3071), np.uint8), "labels": [0] * 4}))
    monkeypatch.setattr(published.CIFAR10, "test_list", [["test_batch", None]])
    with pytest.raises(DataError, match=rf"{path} does not hold 32×32 colour images"):
        ready(CIFAR10(root=str(tmp_path)), "test")


def test_svhn_digit_zero_has_label_zero(written, ready):
    module = ready(written("SVHN"), "test")
    assert set(everything(module.test_dataloader())[1].tolist()) == set(range(10))


@pytest.mark.parametrize(("stage", "lost"), [("test", "train_X.bin"), ("fit", "test_y.bin")])
def test_stl10_needs_no_file_of_the_other_split(written, ready, stage, lost):
    module = written("STL10")
    os.remove(os.path.join(module.root, "stl10_binary", lost))
    ready(module, stage)


def test_digits_are_those_of_scikit_learn(ready):
    module = ready(ready(Digits(root="nowhere")), "test")
    parts = [
        everything(loader()) for loader in (module.train_dataloader, module.val_dataloader, module.test_dataloader)
    ]
    digits = load_digits()
    expected = [
        (np.rint(i * 255 / 16).astype(int).ravel().tolist(), int(t))
        for i, t in zip(digits.images, digits.target, strict=True)
    ]
    got = [(image.flatten().tolist(), int(label)) for part in parts for image, label in zip(*part, strict=True)]
    assert sorted(got) == sorted(expected)
    assert len(parts[2][1]) == 360
    assert (parts[2][1].bincount() - 36).abs().max() <= 1


def test_digits_have_the_mean_and_deviation_they_are_normalised_by(ready):
    images, _ = everything(ready(Digits(), "test").test_dataloader())
    scaled = images.double() / 255
    assert scaled.mean() == pytest.approx(Digits.mean[0], abs=0.01)
    assert scaled.std() == pytest.approx(Digits.std[0], abs=0.01)


# Fetching


SOURCES = {
    "MNIST": published.MNIST,
    "FashionMNIST": published.FashionMNIST,
    "CIFAR10": published.CIFAR10,
    "CIFAR100": published.CIFAR100,
    "SVHN": published.SVHN,
    "STL10": published.STL10,
}


@pytest.fixture
def fetched(monkeypatch):
    """What was fetched; nothing really is."""
    calls = []
    for source in set(SOURCES.values()):
        monkeypatch.setattr(
            source, "__init__", lambda self, root, source=source, **options: calls.append((source, root, options))
        )
    return calls


@pytest.mark.parametrize("name", [*SOURCES, "Digits", "Imagenet32"])
def test_nothing_is_fetched_unless_asked_for(fetched, name):
    getattr(datamodules, name)(root="nowhere").prepare_data()
    assert fetched == []


@pytest.mark.parametrize("name", SOURCES)
def test_fetches_into_the_root_when_asked_for(fetched, name):
    getattr(datamodules, name)(root="there", download=True).prepare_data()
    splits = {"SVHN": [{"split": "train"}, {"split": "test"}], "STL10": [{"split": "train"}]}.get(name, [{}])
    assert fetched == [(SOURCES[name], "there", split | {"download": True}) for split in splits]


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN", "STL10"])
def test_fetching_files_that_are_there_needs_no_network(written, name):
    written(name, download=True).prepare_data()
