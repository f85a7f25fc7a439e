"""Compressed communication through the command line, in one process."""

import pytest
import torch
from helpers import CONFIGS, DIGITS, SMALL, fault, fit, summary

from experiments.cli import main
from experiments.distributed.hooks import Uncompressed

CONFIG = CONFIGS / "communication" / "digits.yaml"
QUICK = ("--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2", "--trainer.enable_progress_bar=false")
HOOK = "--trainer.strategy.init_args.hook"


def one_process(runs, *options, name="run"):
    return fit(runs, *QUICK, "--trainer.devices=1", *options, name=name, config=CONFIG)


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(one, other):
    """Nested dicts and lists of tensors and numbers."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        for some, others in zip(one, other, strict=True):
            assert_same(some, others)
    else:
        assert one == other


def test_lightning_calls_the_hook_on_a_cpu(tmp_path, monkeypatch, capsys):
    calls, exchange = [], Uncompressed.exchange
    monkeypatch.setattr(Uncompressed, "exchange", lambda hook, bucket: calls.append(hook) or exchange(hook, bucket))
    folder = one_process(tmp_path, f"{HOOK}=Uncompressed")
    assert len(calls) == 2 * 4
    megabytes = summary(folder)["metrics"]["communication/megabytes"]
    assert f"Sent:       32.00 bits per parameter, {megabytes:.1f} MB\n" in capsys.readouterr().out
    assert summary(folder)["metrics"]["communication/bits_per_parameter"] == 32


def test_a_resumed_run_sends_what_it_would_have_sent(tmp_path):
    once = one_process(tmp_path, name="once")
    twice = one_process(tmp_path, "--trainer.max_epochs=1", name="twice")
    one_process(tmp_path, "--ckpt_path=last", name="twice")
    for part in ("state_dict", "communication"):
        assert_same(checkpoint(once)[part], checkpoint(twice)[part])
    assert any(memory["residual"].any() for memory in checkpoint(once)["communication"][0]["quantizer"].values())
    same = ("communication/bits_per_parameter", "communication/megabytes", "test/top1", "test/loss")
    assert all(summary(once)["metrics"][name] == summary(twice)["metrics"][name] for name in same)


def test_the_reference_is_frozen_after_the_first_epoch(tmp_path):
    (state,) = checkpoint(one_process(tmp_path))["communication"]
    assert {memory["updates"] for memory in state["quantizer"].values()} == {4}


def test_a_run_without_a_hook_can_go_on_with_one(tmp_path):
    folder = one_process(tmp_path, "--trainer.strategy=auto", "--trainer.max_epochs=1")
    assert "communication" not in checkpoint(folder)
    one_process(tmp_path, "--ckpt_path=last")
    assert checkpoint(folder)["communication"][0]["steps"] == 4


def test_a_checkpoint_of_other_processes_is_refused(tmp_path, capsys):
    folder = one_process(tmp_path, "--trainer.max_epochs=1")
    content = checkpoint(folder)
    content["communication"] *= 3
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", "--name=run", "--ckpt_path=last"]
    message = fault(capsys, *command, *QUICK, "--trainer.devices=1")
    assert "written by 3 processes" in message
    assert "--trainer.devices 3" in message


@pytest.mark.parametrize("options", [(), ("--trainer.devices=2", "--trainer.strategy=ddp")], ids=["hook", "plain ddp"])
def test_several_blocks_are_refused(options, tmp_path, capsys):
    strategy = options or ("--trainer.strategy=CompressedDDP", "--trainer.strategy.hook=EntropyCoded")
    message = fault(capsys, "fit", "--config", str(DIGITS), f"--runs={tmp_path}", *SMALL, *strategy)
    assert "trains 4 blocks, each by a backward pass of its own" in message
    assert "--trainer.devices 1" in message
    assert not list(tmp_path.iterdir())


def test_losses_that_compare_images_are_refused(tmp_path, capsys):
    config = str(CONFIGS / "blockwise_ssl" / "digits.yaml")
    options = ("--model.num_blocks=1", "--trainer.devices=2", "--trainer.accelerator=cpu")
    message = fault(capsys, "fit", "--config", config, f"--runs={tmp_path}", *options)
    assert "compares the images of a batch with each other" in message


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (f"{HOOK}.init_args.c=0", "above 0, not 0"),
        (f"{HOOK}.init_args.coder=Morse", "Morse"),
        (f"{HOOK}=Pigeon", "Pigeon"),
        (f"{HOOK}.init_args.mode=wrong", "'counting', 'true'"),
    ],
)
def test_a_hook_that_is_none_is_told_in_one_sentence(option, said, tmp_path, capsys):
    assert said in fault(capsys, "fit", "--config", str(CONFIG), f"--runs={tmp_path}", option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("coder", ["Zlib", "ZlibHuffman"])
def test_coders_have_short_names(coder, tmp_path, capsys):
    hook = (f"{HOOK}=EntropyCoded", f"{HOOK}.coder={coder}", f"{HOOK}.mode=true")
    folder = one_process(tmp_path, *hook, "--trainer.max_epochs=1")
    metrics = summary(folder)["metrics"]
    bits, ratio = metrics["communication/bits_per_parameter"], metrics["communication/ratio"]
    assert 0 < bits < 8
    said = f"Sent:       {bits:.2f} bits per parameter, {ratio:.1f} × less than float32, "
    assert said in capsys.readouterr().out


def test_the_report_tells_hooks_apart_and_says_what_they_sent(tmp_path):
    hooks = {"none": [f"{HOOK}=Uncompressed"], "one": [f"{HOOK}.init_args.c=1"], "two": [f"{HOOK}.init_args.c=2"]}
    runs = {
        name: one_process(tmp_path, "--trainer.max_epochs=1", *options, name=name) for name, options in hooks.items()
    }
    main(["report", str(tmp_path)])
    lines = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("|")]
    cells = {line.split("|")[1].strip(): line for line in lines}
    assert "sent, bits/parameter" in lines[0]
    assert "MB sent" in lines[0]
    assert "| 32.00 |" in next(line for name, line in cells.items() if "Uncompressed" in name)
    for name, c in (("one", "c 1.0"), ("two", "c 2.0")):
        bits = summary(runs[name])["metrics"]["communication/bits_per_parameter"]
        assert f"| {bits:.2f} |" in next(line for title, line in cells.items() if c in title)
