"""Several processes probe and observe a run: each image goes through the network in one of them."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import in_two_processes, summary
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from experiments.cli import main
from experiments.run.files import OBSERVATIONS
from models.local_learning import LocalLearning

PROBE = ("--epochs=2", "--k=5", "--learning_rates=[0.1,0.3]", "--blocks=[1,4]", "--augment=true")
CONTROLS = ("--random=true", "--reestimate_batch_norm=true")
OBSERVE = ("--epochs=2", "--images=100", "--every=block", "--learning_rates=[0.1]")


def look_at(run, *options):
    """Probe and observe; how many images went through the network."""
    images, walk = [], LocalLearning.walk

    def counted(self, x):
        images.append(len(x))
        return walk(self, x)

    LocalLearning.walk = counted
    main(["probe", f"--checkpoint={run}", *PROBE, *CONTROLS, *options])
    LocalLearning.walk = walk
    main(["observe", f"--checkpoint={run}", f"--reference={run}", *OBSERVE, *options])
    return sum(images)


def work(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with Path(folder, f"printed{rank}").open("w") as file, contextlib.redirect_stdout(file):
        images = look_at(folder / "both", "--trainer.devices=2", "--trainer.accelerator=cpu")
    torch.save(images, folder / f"images{rank}.pt")


def test_two_processes_find_what_one_does(finished, tmp_path):
    for name in ("alone", "both"):
        shutil.copytree(finished, tmp_path / name)
    in_two_processes(work, tmp_path, find_free_network_port())
    images = [torch.load(tmp_path / f"images{rank}.pt") for rank in range(2)]
    assert sum(images) == look_at(tmp_path / "alone")
    assert max(images) < 0.6 * sum(images)
    ours, theirs = (summary(tmp_path / name)["metrics"] for name in ("alone", "both"))
    assert {f"{network}/probe_lin2_augmented/block4/gap/top1" for network in ("random", "reestimated")} <= set(ours)
    assert theirs == pytest.approx(ours, rel=1e-5)
    ours, theirs = (json.loads((tmp_path / name / OBSERVATIONS).read_text())["metrics"] for name in ("alone", "both"))
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert "extraction" in (tmp_path / "printed0").read_text()
    assert not (tmp_path / "printed1").read_text()
