"""Whose files are in a run folder, and who may remove them."""

import fcntl

import pytest
from helpers import CONFIGS, DIGITS, SMALL, fault, fit, summary

from experiments.run.errors import RunError
from experiments.run.files import UNFINISHED
from experiments.run.folder import RunFolder, plain_name
from experiments.suite import read_suite

NO_NAMES = ("..", ".", "", "a/b", "/tmp/x", "../x")
FAILS = ("--trainer.max_epochs=1", "--model.epochs_per_block=2")  # refused when the run folder is there already


def owned(folder):
    """A person's files, one of them called as one of ours."""
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "config.yaml").write_text("mine")
    return folder


def untouched(folder):
    return {file.name: file.read_text() for file in folder.iterdir()} == {"notes.txt": "mine", "config.yaml": "mine"}


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_one_plain_path_component(name, tmp_path, capsys):
    folder = owned(tmp_path / "a")
    told = fault(capsys, "fit", "--config", str(DIGITS), *SMALL, f"--runs={folder / 'runs'}", f"--name={name}")
    assert "one plain folder name" in told
    assert untouched(folder)


@pytest.mark.parametrize("name", NO_NAMES)
def test_so_is_that_of_a_suites_run(name, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(f"runs:\n  - {{config: {DIGITS}, name: '{name}'}}\n")
    with pytest.raises(RunError, match="one plain folder name"):
        read_suite(path)


def test_and_that_of_the_suite(tmp_path, capsys):
    path = tmp_path / "...yaml"
    path.write_text(f"runs:\n  - {{config: {DIGITS}}}\n")
    assert "one plain folder name" in fault(capsys, "suite", str(path), "--runs", str(tmp_path / "runs"))


@pytest.mark.parametrize("resume", [(), ("--ckpt_path=last",)], ids=["new", "resumed"])
def test_a_persons_folder_is_refused_and_left_alone(resume, tmp_path, capsys):
    folder = owned(tmp_path / "runs" / "run")
    command = ("fit", "--config", str(DIGITS), *SMALL, f"--runs={tmp_path / 'runs'}", "--name=run", *resume)
    assert "is not empty" in fault(capsys, *command)
    assert untouched(folder)


def test_a_suite_leaves_a_persons_folder_alone(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(f"runs:\n  - {{config: {DIGITS}, name: run, options: {{trainer.max_epochs: 1}}}}\n")
    folder = owned(tmp_path / "runs" / "study" / "run")
    assert "1 of 1 runs failed: run" in fault(capsys, "suite", str(path), "--runs", str(tmp_path / "runs"), *SMALL)
    assert untouched(folder)


def test_a_run_that_failed_at_once_leaves_nothing_but_what_is_not_its_own(tmp_path, capsys):
    command = ("fit", "--config", str(DIGITS), *SMALL, f"--runs={tmp_path}", "--name=run", *FAILS)
    assert "take 8 epochs" in fault(capsys, *command)
    assert not any(tmp_path.iterdir())


def test_files_that_came_while_a_run_failed_are_kept(tmp_path):
    folder, run = tmp_path / "run", RunFolder(tmp_path / "run")
    run.create()
    (folder / "config.yaml").write_text("the run's")
    (folder / "notes.txt").write_text("mine")
    run.discard_empty()
    run.release()
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_a_run_cut_off_before_its_first_checkpoint_begins_anew_under_its_name(tmp_path):
    folder, run = tmp_path / "run", RunFolder(tmp_path / "run")
    run.create()
    for name in ("config.yaml", "metrics.csv", "events.out.tfevents.1.host.1.0", "notes.txt"):
        (folder / name).write_text("old")
    run.release()
    fit(tmp_path, "--trainer.max_epochs=1")
    assert summary(folder)["epochs"] == 1
    assert (folder / "notes.txt").read_text() == "old"
    assert not (folder / "events.out.tfevents.1.host.1.0").exists()
    assert not (folder / ".unfinished").exists()


def test_a_folder_that_a_living_run_writes_is_not_touched(tmp_path, capsys):
    folder, run = tmp_path / "run", RunFolder(tmp_path / "run")
    run.create()
    run.release()
    (folder / "metrics.csv").write_text("theirs")
    with (folder / UNFINISHED).open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        told = fault(capsys, "fit", "--config", str(DIGITS), *SMALL, f"--runs={tmp_path}", "--name=run")
    assert "is being trained by another process" in told
    assert (folder / "metrics.csv").read_text() == "theirs"


def test_a_checkpoint_of_another_tool_marks_no_folder_as_ours(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "mine.ckpt").write_text("weights")
    (tmp_path / "run" / "config.yaml").write_text("mine")
    run = RunFolder(tmp_path / "run")
    run.create()
    run.discard_empty()
    run.release()
    assert (tmp_path / "run" / "config.yaml").read_text() == "mine"


def test_configs_of_suites_have_plain_names():
    for path in (CONFIGS / "suites").glob("*.yaml"):
        assert all(run.name == plain_name(run.name) for run in read_suite(path))


def test_a_folder_that_this_run_did_not_begin_is_not_discarded(tmp_path):
    folder = owned(tmp_path / "run")
    RunFolder(folder).discard_empty()
    assert untouched(folder)
