"""The feature store: what is written comes back, files are checked and removed; what a block reads from it."""

import errno
import os
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training import mapped_files_in

from datamodules.augment import Augment
from datamodules.digits import Digits
from losses.errors import UsageError
from models.parts.feature_store import FeatureStore, StoredFeatures, StoredInputs

CPU, ALL = torch.device("cpu"), torch.arange(4)


@pytest.mark.parametrize("shape", [(3, 2, 5), (6,)], ids=["maps", "vectors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("in_file", [True, False])
def test_features_come_back_rounded_as_asked(in_file, dtype, shape, tmp_path):
    store = FeatureStore(folder=str(tmp_path) if in_file else None, dtype=dtype)
    features, kept = torch.rand(2, 4, *shape), StoredFeatures(store, 2, 4, shape)
    for number in (0, 1):
        kept.write(number, ALL, features[number])
    rounded = features.to(getattr(torch, dtype)).float()
    assert torch.equal(store.rounded(features), rounded)
    assert torch.equal(kept.read(1, torch.tensor([3, 0])), rounded[1, [3, 0]])
    assert torch.equal(kept.read(0, ALL), rounded[0])


@pytest.mark.skipif(sys.platform != "linux", reason="files without names are seen in /proc")
@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_file_is_in_the_folder_without_a_name_and_gone_with_the_store(how, tmp_path):
    kept = StoredFeatures(FeatureStore(folder=str(tmp_path)), 1, 4, (3, 2, 2))
    assert mapped_files_in(tmp_path) == 1
    assert not os.listdir(tmp_path)  # whenever the process is killed
    if how == "close":
        kept.close()
    del kept  # as when training breaks off
    assert mapped_files_in(tmp_path) == 0


def test_what_the_disk_gives_back_otherwise_is_noticed(tmp_path):
    kept = StoredFeatures(FeatureStore(folder=str(tmp_path)), 1, 4, (3, 2, 2))
    kept.write(0, ALL, torch.rand(4, 3, 2, 2))
    kept._rows[0, 0] += 1
    assert kept.read(0, ALL[1:]).shape == (3, 3, 2, 2)
    with pytest.raises(UsageError, match=rf"store in {tmp_path} was altered on the disk"):
        kept.read(0, ALL)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "fault", "message"),
    [
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=1000), r"needs 0\.18 MiB, but only 0\.00 MiB is free"),
        ("os.posix_fallocate", full, r"cannot be written to .* \(No space left on device\)"),
    ],
    ids=["free", "allocated"],
)
def test_a_full_disk_is_refused_before_anything_is_written(where, fault, message, tmp_path, monkeypatch):
    monkeypatch.setattr(where, fault)
    with pytest.raises(UsageError, match=message):
        StoredFeatures(FeatureStore(folder=str(tmp_path)), 1, 4000, (3, 2, 2))
    assert not os.listdir(tmp_path)


def test_too_much_for_the_memory_and_too_little_to_read_are_refused():
    with pytest.raises(UsageError, match=r"GiB memory is there.*fewer passes.*folder on a disk"):
        StoredFeatures(FeatureStore(), 1, 10**9, (1000, 10, 10))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    StoredFeatures(FeatureStore(), 1, 4, (3, 2, 2), held=memory - 192)
    with pytest.raises(UsageError, match=r"0\.00 MiB memory is there beside the .* GiB of the store that it is made"):
        StoredFeatures(FeatureStore(), 1, 4, (3, 2, 2), held=memory - 191)
    with pytest.raises(UsageError, match="at least 1 pass"):
        FeatureStore(0)


# -- what a block reads ----------------------------------------------------------------------------------


@pytest.fixture
def blocks():
    """Two frozen blocks: images to maps, maps to vectors."""
    torch.manual_seed(0)
    return nn.Conv2d(1, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


@pytest.fixture
def data():
    data = Digits(batch_size=500, augment=Augment(pad=2))
    data.setup("fit")
    return data


def test_a_block_reads_what_the_frozen_ones_make_of_the_images_of_each_pass(blocks, data):
    inputs = StoredInputs(FeatureStore(passes=3), [1, 1, 2])  # as many passes are stored as a later block has epochs
    images = torch.rand(3, 1, 8, 8)
    assert inputs.read(0, images, ALL[:3]) is images  # nothing is stored yet
    for count in (1, 2):
        inputs.advance(blocks[:count], data, CPU)
        assert inputs.blocks == count
        for epoch in range(4):
            batch = next(iter(data.training_pass(epoch % 2, CPU)))
            right = nn.Sequential(*blocks[:count])(batch.images)
            torch.testing.assert_close(inputs.read(epoch, batch.images, batch.indices), right)
        assert inputs.read(0, images, None) is images  # validation
    assert not torch.equal(inputs.read(0, images, ALL), inputs.read(1, images, ALL))


def test_two_stores_are_counted_while_both_are_there(blocks, data, monkeypatch):
    asked = []
    monkeypatch.setattr("models.parts.feature_store._require_memory", lambda *sizes: asked.append(sizes))
    inputs, images = StoredInputs(FeatureStore(passes=2), [2, 2, 1]), len(data.training_images)
    for count in (1, 2):
        inputs.advance(blocks[:count], data, CPU)
    first, second = 2 * images * 4 * 6 * 6 * 4, images * 5 * 4  # the last block has one epoch
    assert asked == [(first, 0), (second, first)]


def test_features_that_cannot_be_recomputed_are_noticed(blocks, data, monkeypatch):
    original = Digits.training_pass

    def fickle(self, number, device):
        for batch in original(self, number, device):
            yield batch._replace(images=batch.images + random.random())

    monkeypatch.setattr(Digits, "training_pass", fickle)
    with pytest.raises(UsageError, match="differ from recomputed ones"):
        StoredInputs(FeatureStore(), [1, 1, 1]).advance(blocks, data, CPU)
