"""Several processes meet, stop and end together."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import CONFIGS, FORK
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Trainer

from experiments.distributed import ddp
from experiments.distributed.ddp import DDP, Launcher
from losses.errors import UsageError

CONFIG = CONFIGS / "communication" / "digits.yaml"


def lose_one(rank, folder, port):
    """Two processes exchange a number, then the second is killed."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)

    def exchange():
        for _ in range(2):
            dist.all_reduce(torch.ones(3))
            if rank:
                os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UsageError) as fault:
        Launcher(LightningEnvironment(), 2, 1).launch(exchange)
    Path(folder, "said").write_text(str(fault.value))


def test_a_lost_process_is_told_by_the_others(tmp_path):
    start, port = mp.get_context(FORK).Process, find_free_network_port()
    both = [start(target=lose_one, args=(rank, tmp_path, port)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=60)
    assert [process.exitcode for process in both] == [0, -signal.SIGKILL]
    assert "Another process of this run ended" in (tmp_path / "said").read_text()


def test_other_faults_stay_what_they_are_and_end_the_processes_that_were_started(monkeypatch):
    monkeypatch.setattr(Launcher, "_call_children_scripts", lambda self: self.procs.append(sleeper))
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    launcher = Launcher(LightningEnvironment(), 2, 1)

    def fail():
        raise RuntimeError("a fault of one's own")

    with pytest.raises(RuntimeError, match="a fault of one's own"):
        launcher.launch(fail)
    assert sleeper.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("regretted", [True, False])
def test_a_process_that_hangs_in_an_exchange_with_a_lost_one_is_ended(monkeypatch, capsys, regretted):
    codes = []
    monkeypatch.setattr(ddp, "_LAST_WORDS", 0.01)
    monkeypatch.setattr(os, "_exit", codes.append)
    before = threading.active_count()
    Launcher(LightningEnvironment(), 1, 1)._end_after(lambda: regretted)
    while threading.active_count() > before:
        time.sleep(0.01)
    assert codes == [2] * regretted
    assert capsys.readouterr().err.count("Another process of this run ended") == regretted


@pytest.fixture
def watched(monkeypatch):
    """What processes wait for, to end when it is lost."""
    losses = []
    monkeypatch.setattr(Launcher, "_end_after", lambda self, loss: losses.append(loss))
    return losses


@pytest.mark.parametrize("started", [True, False])
def test_a_process_that_was_started_ends_with_the_one_that_started_it(started, watched, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(ddp._STARTER, str(os.getppid() * started))
    Launcher(LightningEnvironment(), 2, 1).launch(lambda: None)
    assert watched == [ddp._orphaned] * started


def test_a_process_ends_with_those_that_it_has_started(watched, monkeypatch):
    monkeypatch.setenv(ddp._STARTER, "")  # is set, and taken back after the test
    monkeypatch.setattr(Launcher, "_call_children_scripts", lambda self: self.procs.extend(started))
    started = [SimpleNamespace(wait=print), SimpleNamespace(wait=repr)]
    Launcher(LightningEnvironment(), 3, 1).launch(lambda: None)
    assert watched == [print, repr]


def test_processes_that_do_not_meet_say_where(monkeypatch, capsys):
    monkeypatch.setattr(ddp, "_UNTIL_TOLD", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        strategy = DDP(timeout=2)
        Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
        with pytest.raises(UsageError, match=rf"2 processes at 127.0.0.1:{port} .*MASTER_PORT"):
            strategy.setup_environment()
    assert f"Waiting for all 2 processes at 127.0.0.1:{port} (MASTER_ADDR" in capsys.readouterr().out


@pytest.mark.parametrize("restarts", [0, 3])
def test_torchrun_must_not_start_again_where_lost_processes_have_met(restarts, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    with pytest.raises(UsageError, match="TORCH_DISABLE_SHARE") if restarts else contextlib.nullcontext():
        ddp._require_new_meetings()


def test_processes_that_go_on_from_different_steps_are_refused(monkeypatch):
    strategy = DDP()
    strategy.cluster_environment = LightningEnvironment()
    strategy._lightning_module = SimpleNamespace(trainer=SimpleNamespace(global_step=8))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(DDP, "world_size", 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda steps, step: steps.__setitem__(1, step))
    with pytest.raises(UsageError, match="from steps 0, 8: all need the same run folder"):
        strategy.on_train_start()


def test_ddp_means_ours():
    assert type(Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False).strategy) is DDP


def test_a_termination_signal_of_the_second_process_stops_both_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "backprop-mlp-digits-seed0"
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", "--trainer.max_epochs=1000"]
    first = subprocess.Popen([sys.executable, "-m", "experiments", *command], stdout=subprocess.PIPE, text=True)
    while first.poll() is None and not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.1)
    second = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[0])
    os.kill(second, signal.SIGTERM)
    printed, _ = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM
    assert printed.count("MLP-256-256, 1 block") == 1
    assert f"--name {folder.name} --ckpt_path last" in printed
    assert list(tmp_path.iterdir()) == [folder]
    assert not Path(f"/proc/{second}").exists()
