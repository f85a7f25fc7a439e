"""Whoever gives no sign of life ends the run, which goes on as if nothing had happened."""

import os
import platform
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from helpers import FORK, fit, in_two_processes
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.utilities.exceptions import SIGTERMException
from training import assert_same

from experiments.distributed import ddp, heartbeat
from experiments.distributed.ddp import Launcher
from experiments.distributed.heartbeat import Heartbeat
from experiments.run import folder as run_folder
from losses.errors import UsageError
from models.methods.decoupled_greedy import DecoupledGreedy

HERE = platform.node()
SILENT = f"No sign of life of process 1 on {HERE}: killed or stopped, or its machine or the link to it is lost."


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(heartbeat, "_SECOND", 0.05)
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))


@pytest.fixture
def hearts(store):
    """The hearts of three of four processes, the last of which has not begun, and what they say."""
    losses = []
    beating = [Heartbeat(store, rank, 4, lambda *loss: losses.append(loss)) for rank in range(3)]
    yield beating, losses
    for heart in beating:
        heart.stop(done=True)


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def beats(heart, count):
    """Wait until a heart has beaten that often."""
    wait_for(lambda: int(heart._heard[heart._rank].number) > count)


def test_who_is_silent_is_lost_and_named(hearts):
    (_, second, _), losses = hearts
    second.stop(done=False)
    wait_for(lambda: losses)
    assert losses[0] == ([1], SILENT)


def test_who_is_done_or_has_not_begun_is_not_missed(hearts):
    (first, second, _), losses = hearts
    second.stop(done=True)
    beats(first, 3 * heartbeat._SILENT)
    assert not losses


def test_a_silent_store_stands_for_the_first_process(hearts):
    (first, second, _), losses = hearts
    beats(first, 2)
    answers, store = threading.Event(), second._store
    second._store = SimpleNamespace(set=store.set, multi_get=lambda keys: answers.wait(30) and store.multi_get(keys))
    wait_for(lambda: len({tuple(lost) for lost, _ in losses}) == 2)
    answers.set()
    assert ([0], SILENT.replace("process 1", "process 0")) in losses  # it says
    assert ([1], SILENT) in losses  # the others say


def test_of_processes_that_beat_the_one_that_did_not_wait_in_vain_is_to_blame(hearts):
    (first, second, third), _ = hearts
    third._doing = "waits"
    wait_for(lambda: first._heard[2].doing == "waits")
    second.stop(done=False)
    assert first.missed(lambda: True).startswith(f"process 1 on {HERE} has kept the others waiting")
    third.stop(done=False)
    assert first.missed(lambda: False) == SILENT


def test_a_process_that_hangs_is_ended_with_those_of_its_machine(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(os, "kill", lambda *what: ended.append(what))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(ddp._STARTER, str(os.getppid()))
    launcher = Launcher(LightningEnvironment(), 2, 1)
    launcher.procs = [SimpleNamespace(pid=0, send_signal=ended.append)]
    launcher.cluster_environment.set_global_rank(3)
    for lost in ([1], [2]):  # another; the one that has started this one
        launcher._end_without(lost, "Lost.")
    assert ended == [signal.SIGKILL, 2, (os.getppid(), signal.SIGKILL), signal.SIGKILL, 2]
    assert capsys.readouterr().err == f"error: Lost. {ddp._GO_ON}\n" * 2


@pytest.mark.parametrize("told", [True, False])
def test_after_a_termination_signal_nobody_is_missed(told, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    launcher = Launcher(LightningEnvironment(), 2, 1)
    launcher.is_told_to_stop = told

    def fail():
        raise dist.DistNetworkError("Connection closed by peer")

    with pytest.raises(SIGTERMException if told else UsageError):
        launcher.launch(fail)


# -- whole runs -----------------------------------------------------------------------------

LINES = "BlockParallel --trainer.strategy.replicas=2"
OPTIONS = ("--trainer.devices=2", "--trainer.limit_train_batches=3", "--ckpt_path=auto")


def run(rank, folder, port, strategy, strike=None):
    """One of two processes, as another launcher starts it; in the second epoch there is a signal.

    One to end with is for the first process, before the first batch, others are for the second process, after it.
    """
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop(run_folder._INHERITED, None)  # of a run before
    heartbeat._SECOND = 0.2

    def strikes(module, *_):
        if module.current_epoch == 1:
            os.kill(os.getpid(), strike)

    if strike:
        if strike == signal.SIGTERM and not rank:
            DecoupledGreedy.on_train_epoch_start = strikes
        elif strike != signal.SIGTERM and rank:
            DecoupledGreedy.on_train_batch_end = strikes
        os.dup2(os.open(folder / f"said{rank}", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    fit(folder, *f"--trainer.strategy={strategy}".split(), *OPTIONS)


def struck(folder, port, strategy, strike):
    """Exit codes of both processes; None of one that is still there."""
    both = [get_context(FORK).Process(target=run, args=(rank, folder, port, strategy, strike)) for rank in range(2)]
    for process in both:
        process.start()
    both[0].join(60)
    both[1].join(0 if strike == signal.SIGSTOP else 60)
    codes = [process.exitcode for process in both]
    for process in both:
        process.kill()
        process.join()
    return codes


@pytest.mark.parametrize("strategy", ["ddp", "block_parallel"])
@pytest.mark.parametrize("strike", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_run_which_goes_on_bit_for_bit(strategy, strike, tmp_path):
    port = find_free_network_port()
    assert struck(tmp_path, port, strategy, strike) == [2, None if strike == signal.SIGSTOP else -strike]
    assert f"error: {SILENT} {ddp._GO_ON}\n" in (tmp_path / "said0").read_text()
    with socket.create_server(("127.0.0.1", port)):  # it is free again
        pass
    if strategy == "block_parallel" and strike == signal.SIGKILL:
        in_two_processes(run, tmp_path, find_free_network_port(), strategy)
        ours, theirs = (checkpoint(folder) for folder in (tmp_path / "run", fit(tmp_path / "alone", OPTIONS[1])))
        for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert_same(ours[key], theirs[key], key)


@pytest.mark.parametrize("strategy", ["ddp", "block_parallel", LINES])
def test_a_termination_signal_between_two_epochs_stops_both(strategy, tmp_path):
    assert struck(tmp_path, find_free_network_port(), strategy, signal.SIGTERM) == [128 + signal.SIGTERM] * 2
    assert "error: " not in (tmp_path / "said1").read_text()


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
