"""What a run needs of its data is looked at before it begins, and told in one sentence."""

import shutil
import sys

import pytest
from fake_data import write_data_set
from helpers import DIGITS, SMALL, fault

FIT = ("fit", "--config", str(DIGITS), *SMALL, "--trainer.max_epochs=1", "--model.cut.by=units")


def without_test_images(root):
    shutil.rmtree(root / "test")


def with_a_training_batch_for_validation(root):
    (root / "val_data").write_bytes((root / "train_data_batch_1").read_bytes())


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("ImageFolder", without_test_images, "The folder {root}/test (images, one folder per class) is missing."),
        ("Imagenet32", with_a_training_batch_for_validation, "{root} holds 8 validation images; Imagenet32 has 16"),
    ],
)
def test_what_is_wrong_with_the_test_images_is_told_before_training(name, damage, said, tmp_path, monkeypatch, capsys):
    root = write_data_set(name, tmp_path / "data", monkeypatch)
    damage(root)
    message = fault(capsys, *FIT, f"--runs={tmp_path / 'runs'}", f"--data={name}", f"--data.root={root}")
    assert said.format(root=root) in message
    assert not list((tmp_path / "runs").glob("*"))


OWN = """
import torch
from datamodules import ImageDataModule, MemoryImages

class Own(ImageDataModule):
    num_classes, image_shape = 2, (1, 8, 8)
    mean, std = (0.5,), (0.5,)

    def load(self, train):
        images, labels = torch.zeros(40, 8, 8, 1, dtype=torch.uint8), torch.arange(40) % 2
        return {}
"""


def test_statistics_that_make_no_sense_are_told(capsys, tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    options = ("--data=ImageFolder", f"--data.root={tmp_path}", "--data.std=[0,0,0]")
    message = fault(capsys, *FIT, f"--runs={tmp_path}", *options)
    assert "--data.std: 0 is no number above 0" in message


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("images, labels", "The training split of Own is of type tuple: load must return images"),
        ("MemoryImages(images / 255, labels)", "The training split of Own has images of shape (8, 8, 1) and type"),
        ("MemoryImages(images, labels if train else labels + 1)", "The test split of Own has labels from 1 to 2"),
    ],
)
def test_a_data_set_of_ones_own_that_gives_something_else_is_told(returned, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_data.py").write_text(OWN.format(returned))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    message = fault(capsys, *FIT, f"--runs={tmp_path / 'runs'}", "--data=own_data.Own")
    assert said in message
    assert not list((tmp_path / "runs").glob("*"))
