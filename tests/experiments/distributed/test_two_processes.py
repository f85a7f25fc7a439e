"""A run in two processes, which Lightning starts by the same command line."""

import csv
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import CONFIGS, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import main

CONFIG = CONFIGS / "communication" / "digits.yaml"
QUICK = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two processes that got its default name, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["fit", "--config", str(CONFIG), "--runs", str(runs), *QUICK]
    done = subprocess.run([sys.executable, "-m", "experiments", *command], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return runs, done.stdout


def test_two_processes_write_one_run(finished):
    runs, _ = finished
    assert [folder.name for folder in runs.iterdir()] == ["backprop-mlp-digits-seed0"]
    figures = summary(runs / "backprop-mlp-digits-seed0")
    assert figures["global_step"] == 2 * 4
    assert 0 < figures["metrics"]["communication/bits_per_parameter"] < 8
    assert figures["metrics"]["communication/ratio"] > 4


def test_two_processes_evaluate_as_one_does(finished, capsys):
    runs, _ = finished
    folder = runs / "backprop-mlp-digits-seed0"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    one = ("--trainer.devices=1", "--trainer.strategy=auto")
    for command, split in (("test", "test"), ("validate", "val")):
        main([command, "--config", str(folder / "config.yaml"), f"--ckpt_path={checkpoint}", *one])
        printed = capsys.readouterr().out
        for metric in (f"{split}/top1", f"{split}/loss", f"{split}/block1/top5"):
            alone = float(re.search(rf"│ +{metric} +│ +([\d.]+)", printed)[1])
            assert summary(folder)["metrics"][metric] == pytest.approx(alone, rel=1e-5)


def test_two_processes_print_once(finished):
    _, printed = finished
    assert printed.count("MLP-256-256, 1 block") == 1
    assert "MiB of one process, a batch of 2 processes × 32" in printed
    assert printed.count("Run folder:") == 1
    assert len(re.findall(r"^epoch \d", printed, re.MULTILINE)) == 2


def test_two_processes_log_every_figure_once(finished):
    runs, _ = finished
    folder = runs / "backprop-mlp-digits-seed0"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/communication/bits_per_parameter", "train/communication/coded/shannon_bits"):
        logged = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        assert [step for step, _ in logged] == [1, 3, 5, 7]
        events = EventAccumulator(str(folder)).Reload().Scalars(name)
        assert [(event.step, pytest.approx(event.value)) for event in events] == logged


def test_the_checkpoint_holds_what_both_processes_have_not_sent(finished):
    runs, _ = finished
    one, other = torch.load(runs / "backprop-mlp-digits-seed0" / "checkpoints" / "last.ckpt", weights_only=True)[
        "communication"
    ]
    assert one["steps"] == other["steps"] == 8
    assert one["quantizer"].keys() == other["quantizer"].keys()
    for name, memory in one["quantizer"].items():  # each has images of its own
        assert not torch.equal(memory["residual"], other["quantizer"][name]["residual"])


def test_a_termination_signal_stops_both(tmp_path):
    command = ["fit", "--config", str(CONFIG), "--runs", str(tmp_path), "--name", "run", "--trainer.max_epochs=1000"]
    process = subprocess.Popen([sys.executable, "-m", "experiments", *command], stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--name run --ckpt_path last" in printed
