"""Whose files are in a run folder, and who may remove them."""

from pathlib import Path

import pytest
from helpers import DIGITS, SMALL, fault, fit, summary

from experiments.run.errors import RunError
from experiments.run.files import LAST, UNFINISHED
from experiments.run.folder import HALF_WRITTEN, RunFolder, has_checkpoint, plain_name

FIT = ("fit", "--config", str(DIGITS), *SMALL)
NO_NAMES = ("..", ".", "", "a/b", "/tmp/x", "../x")
MISSING = """from datamodules.digits import Digits


class Missing(Digits):
    def load(self, train):
        return open("/nowhere/images")
"""


def owned(folder):
    """A person's files, one of them called as one of ours."""
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "config.yaml").write_text("mine")
    return folder


def untouched(folder):
    return {file.name: file.read_text() for file in folder.iterdir()} == {"notes.txt": "mine", "config.yaml": "mine"}


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_one_plain_path_component(name):
    with pytest.raises(RunError, match="one plain folder name"):
        plain_name(name)


def test_checkpoints_are_meant_by_name_or_path(tmp_path):
    meant = [RunFolder(tmp_path).checkpoint(asked) for asked in ("last", "best", "a/b.ckpt")]
    assert meant == [tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "best.ckpt", Path("a/b.ckpt")]


@pytest.mark.parametrize("command", ["fit", "suite of such a name", "suite of such a run"])
def test_no_command_takes_another(command, tmp_path, capsys):
    folder, (suite, study) = owned(tmp_path / "a"), (tmp_path / "...yaml", tmp_path / "study.yaml")
    suite.write_text(f"runs:\n  - {{config: {DIGITS}}}\n")
    study.write_text(f"runs:\n  - {{config: {DIGITS}, name: ..}}\n")
    lines = {"fit": (*FIT, "--name=.."), "suite of such a name": ("suite", str(suite))}
    told = fault(capsys, *lines.get(command, ("suite", str(study))), f"--runs={folder / 'runs'}")
    assert "one plain folder name, not '..'" in told
    assert untouched(folder)


@pytest.mark.parametrize("resume", [(), ("--ckpt_path=last",)], ids=["new", "resumed"])
def test_a_persons_folder_is_refused_and_left_alone(resume, tmp_path, capsys):
    folder = owned(tmp_path / "runs" / "run")
    assert "is not empty" in fault(capsys, *FIT, f"--runs={tmp_path / 'runs'}", "--name=run", *resume)
    assert untouched(folder)


def test_a_run_that_failed_at_once_leaves_nothing(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    fails = ("--trainer.max_epochs=1", "--model.epochs_per_block=2")  # refused when the run folder is there already
    assert "take 8 epochs" in fault(capsys, *FIT, f"--runs={runs}", *fails)
    (tmp_path / "own_missing_data.py").write_text(MISSING)
    monkeypatch.syspath_prepend(tmp_path)
    assert "/nowhere/images cannot be used" in fault(capsys, *FIT, f"--runs={runs}", "--data=own_missing_data.Missing")
    assert not runs.exists()


def test_files_that_came_while_a_run_failed_are_kept(tmp_path):
    folder, run = tmp_path / "run", RunFolder(tmp_path / "run")
    with run.written():
        (folder / "config.yaml").write_text("the run's")
        (folder / "notes.txt").write_text("mine")
        run.discard_empty()
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_a_run_cut_off_before_its_first_checkpoint_begins_anew_under_its_name(tmp_path):
    folder = tmp_path / "run"
    with RunFolder(folder).written():
        for name in ("config.yaml", "metrics.csv", "events.out.tfevents.1.host.1.0", "notes.txt"):
            (folder / name).write_text("old")
    fit(tmp_path, "--trainer.max_epochs=1")
    assert summary(folder)["epochs"] == 1
    assert (folder / "notes.txt").read_text() == "old"
    assert not (folder / "events.out.tfevents.1.host.1.0").exists()
    assert not (folder / UNFINISHED).exists()


@pytest.mark.parametrize(
    ("checkpoints", "unfinished", "held"),
    [
        (["best"], True, False),  # killed at the end of its first epoch, between the two
        (["best"], False, True),  # what a person kept of a run
        (["last"], True, True),
        (["best", "last"], True, True),
        (["previous"], True, True),
        (["mine"], True, True),
    ],
)
def test_what_is_there_to_go_on_from(checkpoints, unfinished, held, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in checkpoints:
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    if unfinished:
        (tmp_path / UNFINISHED).touch()
    assert has_checkpoint(tmp_path) == held


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    for name in (*HALF_WRITTEN, "notes.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / LAST).touch()
    with RunFolder(tmp_path).written():
        assert {file.name for file in tmp_path.iterdir()} == {"checkpoints", "notes.part", UNFINISHED}
        assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_folder_that_a_living_run_writes_is_not_touched(tmp_path, capsys):
    folder = tmp_path / "run"
    with RunFolder(folder).written():
        (folder / "metrics.csv").write_text("theirs")
        assert "is being trained by another process" in fault(capsys, *FIT, f"--runs={tmp_path}", "--name=run")
    assert (folder / "metrics.csv").read_text() == "theirs"


@pytest.mark.parametrize("file", ["checkpoints/mine.ckpt", "more.txt"])
def test_nothing_in_a_folder_that_no_run_began_is_discarded(file, tmp_path):
    folder, run = owned(tmp_path / "run"), RunFolder(tmp_path / "run")
    run.discard_empty()
    assert untouched(folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("another tool's")
    with run.written():
        run.discard_empty()
    assert (folder / "config.yaml").read_text() == "mine"
