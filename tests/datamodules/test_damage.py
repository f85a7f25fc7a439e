"""Damaged files, seeded: a set is read as it was written, or one sentence names what is wrong; nothing else happens."""

import os
import pickle
import shutil
import signal
from pathlib import Path
from random import Random

import pytest
import torch
from fake_data import SHAPES, everything, write_data_set

import datamodules
from datamodules.files import DataError

TIMES = 30  # per format, with and without checksums
VERIFIED = ("CIFAR10", "MNIST", "STL10", "SVHN")
UNVERIFIED = ("CIFAR10", "MNIST", "STL10", "Imagenet32", "ImageFolder")


def cut(path, random):
    os.truncate(path, random.randrange(path.stat().st_size))


def flip(path, random):
    """Flip bits, in the first bytes as often as in all others: what describes the content stands there."""
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 5])):
        content[random.randrange(random.choice([min(len(content), 300), len(content)]))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def move(path, random):
    """Take some bytes out, or put some in."""
    content, place = path.read_bytes(), random.randrange(path.stat().st_size)
    path.write_bytes(
        content[:place] + random.choice([b"", random.randbytes(9)]) + content[place + random.randrange(9) :]
    )


def replace(path, random):
    """Something else: nothing, noise, a page of a web server, or a pickle that would leave a mark."""
    attack = pickle.dumps({"data": Attack(path), "labels": []}, protocol=random.randrange(6))
    path.write_bytes(random.choice([b"", random.randbytes(1000), b"<html>404 Not Found</html>", attack]))


def displace(path, random):
    """No file any more."""
    path.unlink()
    random.choice([Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: None])(path)


class Attack:
    """Makes a file beside another when it is unpickled by an ordinary unpickler."""

    def __init__(self, path):
        self._mark = path.with_name("was_run")

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


DAMAGES = (cut, flip, flip, move, replace, displace)


def read(name, root, checksums):
    """All images and labels of training, validation and test split; of a set in folders they are read when shown."""
    options = {"memory_gib": 0} if name == "ImageFolder" else {}
    module = getattr(datamodules, name)(root=str(root), checksums=checksums, validation=0.3, **options)
    module.setup("fit")
    module.setup("test")
    loaders = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    images, labels = zip(*map(everything, loaders), strict=True)
    height, width, channels = SHAPES.get(name, (32, 32, 3))
    assert all(some.dtype == torch.uint8 and some.shape[1:] == (height, width, channels) for some in images)
    assert all(0 <= some.min() <= some.max() < module.num_classes for some in labels)
    return [*images, *labels]


def read_or_sentence(*arguments):
    """What :func:`read` gives, or what it complains of."""
    try:
        return read(*arguments)
    except DataError as fault:
        return str(fault)


@pytest.fixture
def bell():
    """Ends what hangs."""

    def ring(*_):
        raise AssertionError("nothing for 20 s")

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.alarm(20)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes and alarms")
@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged files
@pytest.mark.parametrize(
    ("name", "checksums"), [*((name, True) for name in VERIFIED), *((name, False) for name in UNVERIFIED)]
)
def test_a_damaged_set_is_read_right_or_named(name, checksums, tmp_path, monkeypatch, bell):
    root, random = write_data_set(name, tmp_path / "data", monkeypatch), Random(f"{name} {checksums}")
    sound = read(name, root, checksums)
    files, told = sorted(path for path in root.rglob("*") if path.is_file()), 0
    for _ in range(TIMES):
        path, damage = random.choice(files), random.choice(DAMAGES)
        content = path.read_bytes()
        damage(path, random)
        bell()
        found = read_or_sentence(name, root, checksums)
        if isinstance(found, str):
            told += 1
            assert str(root) in found or "Cannot hold" in found
        elif checksums:
            assert all(map(torch.equal, found, sound)), (damage, path)
        assert not path.with_name("was_run").exists()
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert told > TIMES / 4
    assert all(map(torch.equal, read(name, root, checksums), sound))
