"""A run in two processes: started here side by side, or the second by Lightning with the same command line."""

import contextlib
import csv
import os
import re
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, in_two_processes, summary
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import main

CONFIG = CONFIGS / "communication" / "digits.yaml"


def work(rank, folder, port):
    """One of the two processes, as another launcher than Lightning's would start them."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quick = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2")
    with Path(folder, f"printed{rank}").open("w") as file, contextlib.redirect_stdout(file):
        main(["fit", "--config", str(CONFIG), f"--runs={folder}", "--name=run", *quick])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("runs")
    in_two_processes(work, str(folder), find_free_network_port())
    return folder / "run"


def test_two_processes_write_one_run_and_print_once(both):
    figures = summary(both)
    assert figures["global_step"] == 2 * 4
    assert 0 < figures["metrics"]["communication/bits_per_parameter"] < 8
    assert figures["metrics"]["communication/ratio"] > 4
    printed = (both.parent / "printed0").read_text()
    assert "MiB of one process, a batch of 2 processes × 32" in printed
    assert printed.count("Run folder:") == 1
    assert len(re.findall(r"^epoch \d", printed, re.MULTILINE)) == 2
    assert not (both.parent / "printed1").read_text()


def test_two_processes_evaluate_as_one_does(both, capsys):
    options = ("--config", str(both / "config.yaml"), f"--ckpt_path={both / 'checkpoints' / 'last.ckpt'}")
    for command, split in (("test", "test"), ("validate", "val")):
        main([command, *options, "--trainer.devices=1", "--trainer.strategy=auto"])
        printed = capsys.readouterr().out
        for metric in (f"{split}/top1", f"{split}/loss", f"{split}/block1/top5"):
            alone = float(re.search(rf"│ +{metric} +│ +([\d.]+)", printed)[1])
            assert summary(both)["metrics"][metric] == pytest.approx(alone, rel=1e-5)


def test_two_processes_log_every_figure_once(both):
    with (both / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/communication/bits_per_parameter", "train/communication/coded/shannon_bits"):
        logged = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        assert [step for step, _ in logged] == [1, 3, 5, 7]
        events = EventAccumulator(str(both)).Reload().Scalars(name)
        assert [(event.step, pytest.approx(event.value)) for event in events] == logged


def test_the_checkpoint_holds_what_both_processes_have_not_sent(both):
    one, other = torch.load(both / "checkpoints" / "last.ckpt", weights_only=True)["communication"]
    assert one["steps"] == other["steps"] == 8
    assert one["quantizer"].keys() == other["quantizer"].keys()
    for name, memory in one["quantizer"].items():  # each has images of its own
        assert not torch.equal(memory["residual"], other["quantizer"][name]["residual"])
