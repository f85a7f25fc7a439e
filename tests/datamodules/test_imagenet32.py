import os

import numpy as np
import pytest
from fake_data import fake_images, python3_pickle, rows_of_bytes, write_data_set

from datamodules.files import DataError
from datamodules.imagenet32 import Imagenet32


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_data_set("Imagenet32", tmp_path, monkeypatch)


def fault(root, stage):
    with pytest.raises(DataError) as caught:
        Imagenet32(root=str(root)).setup(stage)
    return str(caught.value)


def test_published_labels_1_to_1000_become_0_to_999(root):
    batch = {"data": np.zeros((16, 3072), np.uint8), "labels": [1, 1000] * 8}
    (root / "val_data").write_bytes(python3_pickle(batch))
    assert Imagenet32(root=str(root)).load(train=False).labels.tolist() == [0, 999] * 8


def test_the_ten_training_files_come_in_their_order(root):
    images, labels = fake_images("Imagenet32", train=True)
    loaded = Imagenet32(root=str(root)).load(train=True)
    assert np.array_equal(loaded.labels, labels)
    assert np.array_equal(loaded._images, images)


@pytest.mark.parametrize(
    ("stage", "name"), [("fit", "train_data_batch_1"), ("fit", "train_data_batch_10"), ("test", "val_data")]
)
def test_a_file_that_is_cut_off_or_missing_is_named(root, stage, name):
    os.truncate(root / name, (root / name).stat().st_size // 2)
    message = fault(root, stage)
    assert f"{root / name} is damaged" in message
    assert "Nothing in it was run" in message
    (root / name).unlink()
    message = fault(root, stage)
    assert f"{root / name} is missing" in message
    assert "--data.download true" not in message


def test_the_two_sets_of_this_name_are_told_apart_by_their_count(root):
    one, other = (Imagenet32(root=str(root)) for _ in range(2))
    one.setup("test")
    images, labels = fake_images("Imagenet32", train=False)
    batch = {"data": rows_of_bytes(images[1:]), "labels": (labels[1:] + 1).tolist()}
    (root / "val_data").write_bytes(python3_pickle(batch))
    other.setup("test")
    assert one.name == "Imagenet32"
    assert other.name == "Imagenet32-49999"
    assert np.array_equal(other.load(train=False).labels, labels[1:])


def test_the_published_counts():
    assert Imagenet32.test_counts == {50_000: "Imagenet32", 49_999: "Imagenet32-49999"}


ROWS = np.zeros((16, 3072), np.uint8)
OTHER_FORM = "does not hold 32×32 colour images"
FAULTS = {
    "5 images": (ROWS[:5], [1] * 5, r"holds 5 images; Imagenet32 has 16 or 15\."),
    "label 0": (ROWS, [0] * 16, "has labels outside 1 … 1000"),
    "label 1001": (ROWS, [1001] * 16, "has labels outside 1 … 1000"),
    "text": (ROWS, ["cat"] * 16, "has labels that are no numbers"),
    "no labels": (ROWS, None, "has labels that are no numbers"),
    "15 labels": (ROWS, [1] * 15, "holds 16 images but 15 labels"),
    "64×64 pixels": (np.zeros((16, 3 * 64 * 64), np.uint8), [1] * 16, OTHER_FORM),
    "floats": (np.zeros((16, 3072)), [1] * 16, OTHER_FORM),
    "one row": (np.zeros(3072, np.uint8), [1] * 16, OTHER_FORM),
    "lists": ([[0] * 3072] * 16, [1] * 16, OTHER_FORM),
}


@pytest.mark.parametrize(("data", "labels", "complaint"), FAULTS.values(), ids=FAULTS)
def test_a_file_with_something_else_in_it_is_named(root, data, labels, complaint):
    path = root / "val_data"
    path.write_bytes(python3_pickle({"data": data, "labels": labels}))
    with pytest.raises(DataError, match=f"{path} {complaint}"):
        Imagenet32(root=str(root)).setup("test")


def test_asking_to_fetch_it_says_where_it_is(root):
    with pytest.raises(DataError, match=rf"image-net\.org, unpack them into {root}.* --data\.download false"):
        Imagenet32(root=str(root), download=True).prepare_data()
