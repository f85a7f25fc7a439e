"""Layer-wise training from the command line: what it writes, what it refuses, how it goes on."""

import errno
import json
import os

import pytest
import torch
from helpers import CONFIGS, fault, fit, summary

from experiments.cli import main

CONFIG = CONFIGS / "layerwise" / "digits.yaml"
SMALL = (
    "--model.network.plan=[8,M,8,8]",
    "--model.head.hidden=8",
    "--model.epochs_per_block=2",
    "--trainer.max_epochs=6",
    "--trainer.limit_train_batches=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)


def run(tmp_path, *options, name="run"):
    return fit(tmp_path, *SMALL, *options, name=name, config=CONFIG)


def test_best_checkpoint_is_of_the_last_block_and_evaluates_alike(tmp_path, capsys):
    folder = run(tmp_path)
    metrics = summary(folder)["metrics"]
    assert {"val/block1/top1", "val/block2/top1", "val/block3/top1", "train/block3/seconds"} < set(metrics)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] >= 4
    assert not any(name.startswith(("heads.0.", "heads.1.")) for name in best["state_dict"])
    capsys.readouterr()
    main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])
    printed = capsys.readouterr().out
    assert f"{metrics['test/top1']:.6f}"[:6] in printed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def again(finished):
    """The command that resumes the finished run."""
    return ["fit", "--config", str(CONFIG), f"--runs={finished.parent}", "--name=run", *SMALL, "--ckpt_path=last"]


def test_a_refused_resume_leaves_the_config_of_the_run(finished, again, capsys):
    before = (finished / "config.yaml").read_bytes()
    refused = fault(capsys, *again, "--trainer.max_epochs=9", "--model.optimizer.lr=0.7")
    assert "3 blocks of 2 epochs each take 6 epochs" in refused
    assert (finished / "config.yaml").read_bytes() == before


def test_a_finished_run_of_so_many_epochs_is_not_advised_to_take_more(again, capsys):
    assert fault(capsys, *again).endswith("is finished (6 epochs).")


def test_a_full_disk_loses_nothing(tmp_path, capsys, monkeypatch):
    whole = run(tmp_path, name="whole")

    def full(file, start, size):
        if size > 1:  # a first byte still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", "--name=cut", *SMALL]
    sentence = fault(capsys, *command, f"--model.store.folder={tmp_path / 'store'}")
    assert "No space left on device" in sentence
    assert "--ckpt_path last" in sentence
    main([*command, "--ckpt_path=last"])  # in memory
    ours, theirs = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("cut", "whole"))
    assert all(torch.equal(tensor, ours["state_dict"][name]) for name, tensor in theirs["state_dict"].items())
    ours, theirs = summary(tmp_path / "cut"), summary(whole)
    assert ours["metrics"]["test/top1"] == theirs["metrics"]["test/top1"]
    # The summary tells of the blocks before the stop too, and of the cost of heads that are gone.
    assert set(ours["metrics"]) == set(theirs["metrics"])
    assert ours["metrics"]["val/block1/top1"] == theirs["metrics"]["val/block1/top1"]
    assert ours["slowest_node_macs"] == theirs["slowest_node_macs"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--model.units_per_block=9",), "A block of 9 units cannot be made of a network of 6"),
        (("--model.num_blocks=3",), "units_per_block, here 1, or by num_blocks, here 3, not by both: set one to null"),
        (("--model.units_per_block=null", "--model.num_blocks=9"), "cannot be cut into 9 blocks"),
        (("--model.epochs_per_block=4",), "6 blocks of 4 epochs each take 24 epochs"),
        (("--model.epochs_per_block=4",), "begins anew with every block: T_max counts that block's epochs"),
        (("--model.store.passes=0",), "at least 1 pass"),
        (("--model.regularization.input_dropout=1.5",), "input_dropout between 0 and 1"),
        (("--data.batch_sizes={0: 0}",), "at least 1 image"),
    ],
)
def test_bad_input_ends_with_a_sentence(options, sentence, capsys, tmp_path):
    assert sentence in fault(capsys, "fit", "--config", str(CONFIG), f"--runs={tmp_path}", *options)
    assert not list(tmp_path.iterdir())


def test_cost_counts_the_steps_of_blocks_one_by_one(capsys):
    def cost(*options):
        main(["cost", "--config", str(CONFIG), "--json", *options])
        return json.loads(capsys.readouterr().out)

    stored, computed = cost(), cost("--model.store=null")
    forward = [node["forward_macs"] for node in stored["nodes"]]
    assert stored["predicted_step_ratio"] < computed["predicted_step_ratio"] < 1
    assert stored["predicted_step_ratio"] == pytest.approx(sum(forward) / 6 / stored["backprop_macs"], rel=1e-6)
    main(["cost", "--config", str(CONFIG)])
    printed = capsys.readouterr().out
    assert "one per node" not in printed
    assert '--data.batch_sizes \'{"0": ' in printed


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, capsys):
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", *SMALL, "--model.store.folder=/proc/x"]
    assert "cannot be written to /proc/x" in fault(capsys, *command)
    assert not list(tmp_path.iterdir())


def test_frozen_blocks_that_are_recomputed_are_counted_as_they_learn(tmp_path):
    plain, recomputed = (
        summary(run(tmp_path, f"--model.recompute={option}", name=option)) for option in ("false", "true")
    )
    assert recomputed["slowest_node_macs"] == plain["slowest_node_macs"]
    assert recomputed["peak_activation_bytes"] < plain["peak_activation_bytes"]


def test_bench_names_the_benchmark_of_single_blocks(capsys):
    assert "experiments.studies.layerwise" in fault(capsys, "bench", "--config", str(CONFIG))


def test_batch_sizes_that_cost_prints_can_be_typed(tmp_path):
    folder = run(tmp_path, '--data.batch_sizes={"0": 32, "2": 64, "4": 128}', "--trainer.limit_train_batches=1.0")
    assert summary(folder)["global_step"] == 2 * (41 + 21 + 11)
