import os
import re

import numpy as np
import pytest
from fake_data import fake_images, python3_pickle, rows_of_bytes, write_data_set

from datamodules.files import DataError
from datamodules.imagenet32 import Imagenet32


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_data_set("Imagenet32", tmp_path, monkeypatch)


def fault(root, stage, **options):
    with pytest.raises(DataError) as caught:
        Imagenet32(root=str(root), **options).setup(stage)
    return str(caught.value)


def test_published_labels_from_1_on_count_from_0(root):
    batch = {"data": np.zeros((16, 3072), np.uint8), "labels": [1, 4, 3, 2] * 4}
    (root / "val_data").write_bytes(python3_pickle(batch))
    assert Imagenet32(root=str(root)).load(train=False).labels.tolist() == [0, 3, 2, 1] * 4


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
    one.setup("fit")
    images, labels = fake_images("Imagenet32", train=False)
    batch = {"data": rows_of_bytes(images[1:]), "labels": (labels[1:] + 1).tolist()}
    (root / "val_data").write_bytes(python3_pickle(batch))
    other.setup("test")
    other.setup("fit")
    assert one.name == "Imagenet32"
    assert other.name == "Imagenet32-49999"
    assert np.array_equal(other.load(train=False).labels, labels[1:])


def test_the_published_counts():
    assert Imagenet32.train_count == 1_281_167
    assert Imagenet32.test_counts == {50_000: "Imagenet32", 49_999: "Imagenet32-49999"}
    assert Imagenet32.num_classes == 1000


def test_what_is_not_checked_is_said_in_one_line(root, capsys):
    module = Imagenet32(root=str(root))
    module.setup("fit")
    module.setup("test")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: no checksums are published for the files of Imagenet32 in {root}; ")
    assert line.endswith("pixels are not.")


def test_a_batch_that_is_there_twice_is_refused(root):
    (root / "train_data_batch_7").write_bytes((root / "train_data_batch_3").read_bytes())
    assert f"{root / 'train_data_batch_3'} and {root / 'train_data_batch_7'} hold the same" in fault(root, "fit")


def test_a_part_of_the_classes_has_outputs_of_its_own_and_another_name(root, monkeypatch):
    monkeypatch.setattr(Imagenet32, "num_classes", 1000)
    monkeypatch.setattr(Imagenet32, "train_count", 1_281_167)
    assert "holds 80 training images; Imagenet32 has 1,281,167. For a part" in fault(root, "fit")
    assert "classes, not of 5: set --data.num_classes 4." in fault(root, "fit", num_classes=5)
    module = Imagenet32(root=str(root), num_classes=4)
    module.setup("fit")
    module.setup("test")
    assert (module.num_classes, module.name) == (4, "Imagenet32-4-classes")


ROWS, LABELS = np.zeros((16, 3072), np.uint8), [1, 2, 3, 4] * 4
OTHER_FORM = "The data file {path} does not hold whole images of 3×32×32 bytes"
NO_NUMBERS = "The data file {path} has labels that are no whole numbers"
FAULTS = {
    "5 images": (ROWS[:5], LABELS[:5], "{root} holds 5 validation images; Imagenet32 has 16 or 15\\."),
    "3 classes": (ROWS, [1, 2, 3, 1] * 4, "in {root} have images of 3 classes, not of 4: set --data.num_classes 3"),
    "label 0": (ROWS, [0, *LABELS[1:]], "The data file {path} has labels from -1 to 3, counted from 0; those of 4"),
    "label 5": (ROWS, [5, *LABELS[1:]], "The data file {path} has labels from 0 to 4, .* go from 0 to 3"),
    "byte 0": (ROWS, np.array([0, *LABELS[1:]], np.uint8), "{path} has labels from -1"),
    "huge": (ROWS, [2**63, *LABELS[1:]], "{path} has labels from -9223372036854775808|" + NO_NUMBERS),
    "text": (ROWS, ["cat"] * 16, NO_NUMBERS),
    "boolean": (ROWS, [True] * 16, NO_NUMBERS),
    "fractions": (ROWS, [1.5] * 16, NO_NUMBERS),
    "ragged": (ROWS, [[1], [1, 2]], NO_NUMBERS),
    "no labels": (ROWS, None, NO_NUMBERS),
    "15 labels": (ROWS, LABELS[:15], "The data file {path} has 16 images, but 15 labels"),
    "nothing": (ROWS[:0], np.empty(0, int), "The data file {path} has no images"),
    "64×64 pixels": (
        np.zeros((16, 3 * 64 * 64), np.uint8),
        LABELS,
        "The data file {path} has 64 images, but 16 labels",
    ),
    "33×33 pixels": (
        np.zeros((16, 3267), np.uint8),
        LABELS,
        OTHER_FORM,
    ),
    "floats": (np.zeros((16, 3072)), LABELS, OTHER_FORM),
    "one row": (np.zeros(3072, np.uint8), LABELS, "The data file {path} has 1 images, but 16 labels"),
    "lists": ([[0] * 3072] * 16, LABELS, OTHER_FORM),
}


@pytest.mark.parametrize(("data", "labels", "complaint"), FAULTS.values(), ids=FAULTS)
def test_a_file_with_something_else_in_it_is_named(root, data, labels, complaint):
    path = root / "val_data"
    path.write_bytes(python3_pickle({"data": data, "labels": labels}))
    assert re.search(complaint.format(path=path, root=root), fault(root, "test"))


def test_asking_to_fetch_it_says_where_it_is(root):
    with pytest.raises(DataError, match=rf"image-net\.org, unpack them into {root}.* --data\.download false"):
        Imagenet32(root=str(root), download=True).prepare_data()
