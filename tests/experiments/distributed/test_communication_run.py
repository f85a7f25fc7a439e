"""Compressed communication through the command line, in one process."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers import CONFIGS, DIGITS, SMALL, fault, fit, summary
from lightning.pytorch.strategies import DDPStrategy

from experiments.cli import main
from experiments.distributed.hooks import Uncompressed
from experiments.distributed.payloads import Gradients, WeightDelta
from experiments.distributed.strategy import CompressedDDP
from experiments.run.summary import show_summary
from experiments.studies.coded_bits import ACCURACY, BITS, SENT, read_curves
from experiments.studies.coded_bits import main as draw_bits

CONFIG = CONFIGS / "communication" / "digits.yaml"
QUICK = ("--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2", "--trainer.enable_progress_bar=false")
HOOK = "--trainer.strategy.init_args.hook"
PAYLOAD = "--trainer.strategy.init_args.payload"
WEIGHTS = (f"{HOOK}.quantizer=Range", f"{HOOK}.mode=true", f"{PAYLOAD}=Weights", f"{PAYLOAD}.every=3")
STEP = f"{HOOK}.init_args.quantizer.init_args.c"


def one_process(runs, *options, name="run"):
    return fit(runs, *QUICK, "--trainer.devices=1", *options, name=name, config=CONFIG)


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two epochs with each of three hooks, for reading only; the folder of the runs."""
    folder = tmp_path_factory.mktemp("hooks")
    one_process(folder, name="coded")
    one_process(folder, f"{STEP}=2", f"{HOOK}.mode=true", name="coarse")
    one_process(folder, f"{HOOK}=Uncompressed", name="none")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two epochs of coded weights, for reading only; the folder of the run."""
    return one_process(tmp_path_factory.mktemp("weights"), *WEIGHTS)


@pytest.fixture
def coded(runs, tmp_path):
    """The first of them, which a test may change."""
    return shutil.copytree(runs / "coded", tmp_path / "run")


def second_process(payload):
    """The strategy as the second of two processes has it."""
    strategy = CompressedDDP(Uncompressed(), payload)
    strategy.cluster_environment = SimpleNamespace(world_size=lambda: 2, global_rank=lambda: 1, local_rank=lambda: 1)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    strategy._lightning_module = SimpleNamespace(trainer=SimpleNamespace(training=True))
    return strategy


def test_lightning_calls_the_hook_on_a_cpu(runs):
    (state,) = checkpoint(runs / "none")["communication"]
    assert state["steps"] == 2 * 4
    metrics = summary(runs / "none")["metrics"]
    assert metrics["communication/bits_per_parameter"] == 32
    assert metrics["communication/megabytes"] == pytest.approx(state["total_bytes"] / 1e6)


@pytest.mark.parametrize(("name", "less"), [("none", False), ("coded", True)])
def test_the_end_of_a_run_says_what_was_sent(name, less, runs, capsys):
    show_summary(runs / name, summary(runs / name))
    metrics = summary(runs / name)["metrics"]
    bits, ratio, sent = (metrics[f"communication/{key}"] for key in ("bits_per_parameter", "ratio", "megabytes"))
    said = f", {ratio:.1f} × less than float32" if less else ""
    printed = capsys.readouterr().out
    assert f"Sent:       {bits:.2f} bits per parameter{said}, {sent:.1f} MB\n" in printed
    (model,) = [line.split()[-2:] for line in printed.splitlines() if "model (last block)" in line]
    assert model == [f"{100 * metrics[name]:.2f}" for name in ("val/top1", "test/top1")]


def test_a_resumed_run_of_weights_is_the_run_that_it_would_have_been(weights, tmp_path):
    once, twice = weights, one_process(tmp_path, *WEIGHTS, "--trainer.max_epochs=1")
    one_process(tmp_path, *WEIGHTS, "--ckpt_path=last")
    for part in ("state_dict", "communication"):
        torch.testing.assert_close(checkpoint(twice)[part], checkpoint(once)[part], rtol=0, atol=0)
    assert checkpoint(once)["communication"][0]["steps"] == 2 * 2  # after three of four batches, and the last
    by_epoch = [name for name in summary(once)["metrics"] if name.startswith("communication")]
    assert by_epoch
    assert all(summary(once)["metrics"][name] == summary(twice)["metrics"][name] for name in by_epoch)


@pytest.mark.parametrize(("name", "exchanges"), [("coded", 4), ("weights", 2)])
def test_what_every_epoch_sent_is_logged(name, exchanges, runs, weights):
    folder = weights if name == "weights" else runs / name
    rows = pd.read_csv(folder / "metrics.csv").groupby("epoch").last().dropna(subset="communication/megabytes")
    parameters = 64 * 256 + 256 * 256 + 256 * 10 + 4 * 256 + 10  # with BatchNorms
    sent = rows["communication/epoch/megabytes"]
    assert len(sent) == 2
    assert sent[0] == pytest.approx(rows["communication/megabytes"][0], rel=1e-5)
    assert sent.sum() == pytest.approx(rows["communication/megabytes"][1], rel=1e-5)
    bits = 8e6 * sent / exchanges / parameters
    assert list(rows["communication/epoch/bits_per_parameter"]) == pytest.approx(list(bits), rel=1e-5)


def test_a_logged_step_without_an_exchange_logs_the_next_one(weights):
    rows = pd.read_csv(weights / "metrics.csv")  # steps 2 and 4 are logged ones, 3 and 4 exchanges
    logged = rows.dropna(subset="train/communication/coded/bits")["step"]
    assert list(logged) == [2, 3, 6, 7]


def test_each_process_goes_on_with_its_own_optimizer_where_these_differ(monkeypatch):
    loaded = {}
    for payload in (Gradients(), WeightDelta()):
        states = [{"steps": 0, "total_bytes": 0, "optimizer_states": [name]} for name in ("first", "second")]
        content = {"communication": states, "optimizer_states": ["first"]}
        monkeypatch.setattr(DDPStrategy, "load_checkpoint", lambda *_, content=content: content)
        strategy = second_process(payload)
        loaded[type(payload)] = strategy.load_checkpoint("last.ckpt")["optimizer_states"]
    assert loaded == {Gradients: ["first"], WeightDelta: ["second"]}


def test_optimizers_of_all_processes_are_saved_where_these_differ(runs, weights):
    saved = checkpoint(weights)
    (own,) = saved["communication"]
    torch.testing.assert_close(own["optimizer_states"], saved["optimizer_states"])
    assert "optimizer_states" not in checkpoint(runs / "coded")["communication"][0]


def test_a_resumed_run_sends_what_it_would_have_sent(runs, tmp_path):
    once, twice = runs / "coded", one_process(tmp_path, "--trainer.max_epochs=1")
    one_process(tmp_path, "--ckpt_path=last")
    for part in ("state_dict", "communication"):
        torch.testing.assert_close(checkpoint(twice)[part], checkpoint(once)[part], rtol=0, atol=0)
    memories = checkpoint(once)["communication"][0]["quantizer"].values()
    assert any(memory["residual"].any() for memory in memories)
    assert {memory["updates"] for memory in memories} == {4}  # the reference is frozen after the first epoch
    same = ("communication/bits_per_parameter", "communication/megabytes", "test/top1", "test/loss")
    assert all(summary(once)["metrics"][name] == summary(twice)["metrics"][name] for name in same)


def test_each_process_goes_on_with_what_it_had_not_sent_itself(monkeypatch):
    states = [{"steps": 4, "total_bytes": 10}, {"steps": 4, "total_bytes": 20}]
    monkeypatch.setattr(DDPStrategy, "load_checkpoint", lambda *_: {"communication": states})
    strategy = second_process(Gradients())
    strategy.load_checkpoint("last.ckpt")
    assert strategy.hook.total_bytes == 20


def test_a_run_without_a_hook_can_go_on_with_one(tmp_path):
    folder = one_process(tmp_path, "--trainer.strategy=auto", "--trainer.max_epochs=1")
    assert "communication" not in checkpoint(folder)
    one_process(tmp_path, "--ckpt_path=last", f"{HOOK}.coder=Zlib")
    assert checkpoint(folder)["communication"][0]["steps"] == 4


def test_a_checkpoint_of_other_processes_is_refused(coded, tmp_path, capsys):
    content = checkpoint(coded)
    content["communication"] *= 3
    torch.save(content, coded / "checkpoints" / "last.ckpt")
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", "--name=run", "--ckpt_path=last"]
    message = fault(capsys, *command, *QUICK, "--trainer.devices=1", "--trainer.max_epochs=3")
    assert "written by 3 processes" in message
    assert "--trainer.devices 3" in message


def test_several_blocks_are_refused(tmp_path, capsys):
    strategy = ("--trainer.strategy=CompressedDDP", "--trainer.strategy.hook=EntropyCoded")
    message = fault(capsys, "fit", "--config", str(DIGITS), f"--runs={tmp_path}", *SMALL, *strategy)
    assert "CompressedDDP does not train the blocks of DecoupledGreedy" in message
    assert "--trainer.strategy ddp" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (f"{STEP}=0", "0 is no number above 0"),
        (f"{HOOK}.init_args.coder=Morse", "Morse"),
        (f"{HOOK}=Pigeon", "Pigeon"),
        (f"{HOOK}.init_args.mode=wrong", "'counting', 'true'"),
    ],
)
def test_a_hook_that_is_none_is_told_in_one_sentence(option, said, tmp_path, capsys):
    assert said in fault(capsys, "fit", "--config", str(CONFIG), f"--runs={tmp_path}", option)
    assert not list(tmp_path.iterdir())


def test_the_report_tells_hooks_apart_and_says_what_they_sent(runs, tmp_path):
    main(["report", str(runs), f"--output={tmp_path}"])
    table = pd.read_csv(tmp_path / "report.csv", dtype=str)
    assert (table["MB sent"] != "–").all()
    for name, said in (("none", "Uncompressed"), ("coded", "c 1.0"), ("coarse", "c 2.0")):
        (sent,) = table["sent, bits/parameter"][table["method"].str.contains(said, regex=False)]
        assert sent == f"{summary(runs / name)['metrics']['communication/bits_per_parameter']:.2f}"


def test_bits_over_the_epochs_are_drawn_by_payload_and_hook(runs, weights, tmp_path, capsys):
    folders = [runs, weights.parent]
    curves = read_curves(folders)
    assert set(curves) == {
        "Gradients, Uncompressed",
        "Gradients, FixedRef c = 1.0, ZlibHuffman",
        "Gradients, FixedRef c = 2.0, ZlibHuffman",
        "Weights, Range c = 1.0, ZlibHuffman",
    }
    (epochs,) = curves["Weights, Range c = 1.0, ZlibHuffman"]
    metrics = summary(weights)["metrics"]
    last = {"epoch": 2, BITS: metrics[BITS], SENT: metrics[SENT], ACCURACY: 100 * metrics[ACCURACY]}
    assert dict(epochs.iloc[-1]) == pytest.approx(last)
    assert [len(table) for tables in curves.values() for table in tables] == [2] * 4
    draw_bits([*map(str, folders), "--output", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        draw_bits([str(tmp_path)])
    assert "No finished run" in capsys.readouterr().err
