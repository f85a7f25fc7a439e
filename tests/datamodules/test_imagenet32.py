import os
import pickle

import numpy as np
import pytest
from fake_data import fake_images, python3_pickle, rows_of_bytes, write_data_set

from datamodules.files import DataError
from datamodules.imagenet32 import Imagenet32


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_data_set("Imagenet32", tmp_path, monkeypatch)


def module(root, **options):
    return Imagenet32(root=str(root), **options)


def batch(count, label=1):
    return {"data": np.zeros((count, 3072), np.uint8), "labels": [label] * count}


def fault(root, stage="fit"):
    with pytest.raises(DataError) as caught:
        module(root).setup(stage)
    return str(caught.value)


def test_published_labels_1_to_1000_become_0_to_999(root):
    (root / "val_data").write_bytes(python3_pickle(batch(16) | {"labels": [1, 1000] * 8}))
    assert module(root).load(train=False).labels.tolist() == [0, 999] * 8


def test_the_ten_training_files_come_in_their_order(root):
    images, labels = fake_images("Imagenet32", train=True)
    loaded = module(root).load(train=True)
    assert np.array_equal(loaded.labels, labels)
    assert np.array_equal(loaded._images, images)


@pytest.mark.parametrize("number", [1, 5, 10])
def test_a_missing_training_file_is_named(root, number):
    (root / f"train_data_batch_{number}").unlink()
    assert f"{root / f'train_data_batch_{number}'} is missing" in fault(root)


def test_a_missing_validation_file_is_named(root):
    (root / "val_data").unlink()
    assert f"{root / 'val_data'} is missing" in fault(root, "test")


def test_a_missing_file_is_not_said_to_be_fetchable(root):
    (root / "train_data_batch_3").unlink()
    assert "--data.download true" not in fault(root)


def test_a_file_that_was_cut_off_is_named(root):
    path = root / "train_data_batch_7"
    os.truncate(path, path.stat().st_size // 2)
    message = fault(root)
    assert f"{path} is damaged" in message
    assert "truncated" in message


class Calls:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


def test_a_file_that_tries_to_run_a_command_is_named_and_runs_nothing(root, tmp_path):
    mark, path = tmp_path / "was_run", root / "train_data_batch_2"
    content = pickle.dumps(batch(8) | {"mean": Calls(f"touch '{mark}'")}, protocol=2)
    path.write_bytes(content)
    message = fault(root)
    assert not mark.exists()
    assert str(path) in message
    assert "Nothing in it was run" in message
    pickle.loads(content)
    assert mark.exists()  # the attack works on an ordinary unpickler


def test_the_two_sets_of_this_name_are_told_apart_by_their_count(root):
    one, other = module(root), module(root)
    one.setup("test")
    images, labels = fake_images("Imagenet32", train=False)
    (root / "val_data").write_bytes(
        python3_pickle({"data": rows_of_bytes(images[1:]), "labels": (labels[1:] + 1).tolist()})
    )
    other.setup("test")
    assert one.name == "Imagenet32"
    assert other.name == "Imagenet32-49999"
    assert np.array_equal(other.load(train=False).labels, labels[1:])


def test_the_published_counts():
    assert Imagenet32.test_counts == {50_000: "Imagenet32", 49_999: "Imagenet32-49999"}


def test_the_published_names_of_the_training_files():
    assert Imagenet32.train_files == (
        *("train_data_batch_1", "train_data_batch_2", "train_data_batch_3", "train_data_batch_4"),
        *("train_data_batch_5", "train_data_batch_6", "train_data_batch_7", "train_data_batch_8"),
        *("train_data_batch_9", "train_data_batch_10"),
    )


def test_an_unknown_count_of_validation_images_is_refused(root):
    (root / "val_data").write_bytes(python3_pickle(batch(5)))
    message = fault(root, "test")
    assert f"{root / 'val_data'} holds 5 images; Imagenet32 has 16 or 15." in message


@pytest.mark.parametrize("label", [0, 1001, -1])
def test_labels_outside_1_to_1000_are_refused(root, label):
    (root / "val_data").write_bytes(python3_pickle(batch(16, label)))
    assert f"{root / 'val_data'} has labels outside 1 … 1000" in fault(root, "test")


@pytest.mark.parametrize("labels", [["cat"] * 16, None], ids=["text", "none"])
def test_labels_that_are_no_numbers_are_refused(root, labels):
    (root / "val_data").write_bytes(python3_pickle(batch(16) | {"labels": labels}))
    assert f"The data file {root / 'val_data'} " in fault(root, "test")


def test_unequal_counts_of_images_and_labels_are_refused(root):
    (root / "val_data").write_bytes(python3_pickle(batch(16) | {"labels": [1] * 15}))
    assert f"{root / 'val_data'} holds 16 images but 15 labels" in fault(root, "test")


@pytest.mark.parametrize(
    "data",
    [np.zeros((16, 3 * 64 * 64), np.uint8), np.zeros((16, 3072)), np.zeros(3072, np.uint8), [[0] * 3072] * 16],
    ids=["64×64 pixels", "floats", "one row", "lists"],
)
def test_images_of_another_form_are_refused(root, data):
    (root / "val_data").write_bytes(python3_pickle(batch(16) | {"data": data}))
    assert f"{root / 'val_data'} does not hold 32×32 colour images" in fault(root, "test")


def test_asking_to_fetch_it_says_where_it_is(root):
    with pytest.raises(DataError, match=rf"image-net\.org, unpack them into {root}") as caught:
        module(root, download=True).prepare_data()
    assert "--data.download false" in str(caught.value)
