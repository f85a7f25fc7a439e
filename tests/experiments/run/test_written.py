"""Files that are there whole or not at all."""

import os
from pathlib import Path

import pytest
import torch

from experiments.run.written import WholeCheckpoints, in_one_move


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text("old")
    with in_one_move(file) as part:
        part.write_text("new")
        assert part.parent == file.parent  # of one file system
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert [*tmp_path.iterdir()] == [file]


def test_after_a_fault_the_old_file_is_there_alone(tmp_path):
    file = tmp_path / "summary.json"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError), in_one_move(file) as part:
        part.write_text("ne\ud800")
    assert file.read_text() == "old"
    assert [*tmp_path.iterdir()] == [file]


def test_what_is_moved_is_on_the_disk(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda part, file: calls.append("replace"))
    with in_one_move(tmp_path / "a") as part:
        part.touch()
    assert calls == ["fsync", "replace"]


def test_a_second_name_of_the_same_file_leaves_no_third(tmp_path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.touch()
    os.link(last, previous)
    with in_one_move(previous) as part:
        os.link(last, part)
    assert sorted(tmp_path.iterdir()) == [last, previous]


def test_a_checkpoint_replaces_the_old_one_under_one_of_its_names_only(tmp_path):
    last, previous = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "previous.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, last)
    os.link(last, previous)
    WholeCheckpoints().save_checkpoint({"epoch": 2}, str(last))
    assert [torch.load(file)["epoch"] for file in (last, previous)] == [2, 1]
