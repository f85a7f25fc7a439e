"""A full disk, a folder that is gone, an output that nobody reads: one sentence, and the last checkpoint is good."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import fault, fit

from experiments.cli import _tell_unless_handed_on, main
from experiments.run.errors import told
from experiments.run.written import WholeCheckpoints

NO_ROOM = Path("/dev/full")
needs_no_room = pytest.mark.skipif(not NO_ROOM.exists(), reason="a device of Linux")


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.ENOSPC, "run/last.ckpt", "run/last.ckpt cannot be used: No space left on device."),
        (errno.ENOSPC, None, "The output, or a file, cannot be used: No space left on device."),
        (errno.EROFS, b"run/events", "run/events cannot be used: Read-only file system."),
        (errno.ENOENT, "/gone/metrics.csv", "No such file or directory, its folder is not there."),
        (errno.ENOENT, "/misspelt", None),
        (errno.ENOENT, None, None),
        (errno.EINVAL, "/file", None),
    ],
)
def test_what_the_machine_refuses_is_told_and_nothing_else(number, file, said):
    found = told(OSError(number, os.strerror(number), file))
    assert found is None if said is None else found.endswith(said)


def test_a_run_whose_disk_is_full_says_how_to_go_on_and_does(copied, tmp_path, capsys, monkeypatch):
    last, small = copied / "checkpoints" / "last.ckpt", copied.parent
    before, room = last.read_bytes(), [True] * 4  # of epoch 3: metrics.csv, config.yaml, best.ckpt, previous.ckpt

    def fsync(number):
        if not room or not room.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(SystemExit) as stop:
            fit(small, "--ckpt_path=last", "--trainer.max_epochs=3")
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {copied}/")
    assert error.endswith(
        "No space left on device. When it can, go on with the same command and --name run --ckpt_path last."
    )
    assert last.read_bytes() == before
    assert not [*copied.rglob("*.part")]
    assert (
        torch.load(fit(small, "--ckpt_path=last", "--trainer.max_epochs=3") / "checkpoints" / "last.ckpt")["epoch"] == 2
    )


def test_a_run_whose_folder_is_removed_is_told(copied, tmp_path, capsys, monkeypatch):
    moved = tmp_path / "elsewhere"
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", lambda *_, **__: copied.exists() and copied.rename(moved))
    said = fault(
        capsys,
        "fit",
        f"--config={copied / 'config.yaml'}",
        f"--runs={tmp_path}",
        "--name=run",
        "--ckpt_path=last",
        "--trainer.max_epochs=4",
    )
    assert f"{copied}" in said
    assert said.endswith("its folder is not there.")
    assert not copied.exists()


@needs_no_room
def test_a_checkpoint_without_room_is_a_fault_of_the_disk(tmp_path):
    (tmp_path / "last.ckpt.part").symlink_to(NO_ROOM)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        WholeCheckpoints().save_checkpoint({"weights": torch.ones(100_000)}, tmp_path / "last.ckpt")


@needs_no_room
def test_an_output_without_room_is_told(monkeypatch, capsys):
    with NO_ROOM.open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert "output" in fault(capsys, "report", "--help")


def test_a_closed_output_is_no_fault(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as stop:
        main(["report", "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize(("kind", "heard"), [(OSError, False), (ValueError, True)])
def test_of_a_thread_only_what_is_not_raised_again_is_heard(kind, heard, monkeypatch, capsys):
    def end():
        raise kind("the end")

    monkeypatch.setattr(threading, "excepthook", _tell_unless_handed_on)
    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert ("the end" in capsys.readouterr().err) == heard


def test_of_an_archive_that_broke_off_the_disks_fault_is_told(tmp_path, monkeypatch):
    def save(checkpoint, file):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch does  # noqa: B904

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        WholeCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")
