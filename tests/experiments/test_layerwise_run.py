"""Layer-wise training from the command line: what it writes, what it refuses, how it goes on."""

import csv
import errno
import json
import os
import re
import shutil
from functools import partial

import pytest
import torch
from helpers import CONFIGS, fault, fit, summary

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.cli import main
from experiments.studies import partitions
from models.networks.vgg import VGG

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


def run(tmp_path, *options):
    return fit(tmp_path, *SMALL, *options, config=CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"))


def test_best_checkpoint_is_of_the_last_block_and_evaluates_alike(finished, capsys):
    metrics = summary(finished)["metrics"]
    assert {"val/block1/top1", "val/block2/top1", "val/block3/top1", "train/block3/seconds"} < set(metrics)
    best = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] >= 4
    assert not any(name.startswith(("heads.0.", "heads.1.")) for name in best["state_dict"])
    capsys.readouterr()
    last = finished / "checkpoints" / "last.ckpt"
    main(["test", "--config", str(finished / "config.yaml"), "--ckpt_path", str(last)])
    printed = capsys.readouterr().out
    assert f"{metrics['test/top1']:.6f}"[:6] in printed


@pytest.fixture
def again(finished):
    """The command that resumes the finished run."""
    return ["fit", "--config", str(CONFIG), f"--runs={finished.parent}", "--name=run", *SMALL, "--ckpt_path=last"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Stopped when the second of three blocks had learned."""
    return run(tmp_path_factory.mktemp("stopped"), "--trainer.max_steps=16")


def test_an_unfinished_run_is_judged_by_the_block_that_has_learned(stopped, capsys):
    metrics = summary(stopped)["metrics"]
    assert metrics["test/top1"] == metrics["test/block2/top1"]
    assert not any("block3" in name for name in metrics)
    last = ("--config", str(stopped / "config.yaml"), "--ckpt_path", str(stopped / "checkpoints" / "last.ckpt"))
    for command, split in (("validate", "val"), ("test", "test")):
        capsys.readouterr()
        main([command, *last])
        printed = capsys.readouterr().out
        assert f"{metrics[f'{split}/block2/top1']:.6f}"[:6] in printed
        assert "block3" not in printed
    main(["predict", *last])
    with (stopped / "predictions.csv").open() as file:
        predicted = [int(row["class"]) for row in csv.DictReader(file)]
    labels = Digits().load(train=False).labels
    assert (torch.tensor(predicted) == labels).float().mean().item() == pytest.approx(metrics["test/top1"])


def test_an_unfinished_run_is_probed_and_observed_as_far_as_it_has_learned(stopped, tmp_path, capsys):
    folder = shutil.copytree(stopped, tmp_path / "run")
    probe = ("probe", f"--checkpoint={folder}", "--epochs=1", "--k=5", "--trainer.accelerator=cpu")
    main([*probe])
    probed = {name.split("/")[1] for name in summary(folder)["metrics"] if name.startswith("probe_lin1/")}
    assert probed == {"block1", "block2"}
    assert "has blocks [1, 2] that have learned, not [3]" in fault(capsys, *probe, "--blocks=[3]")
    main(["observe", f"--checkpoint={folder}", "--epochs=1", "--images=100"])
    observed = json.loads((folder / "observations.json").read_text())["metrics"]
    assert {name.split("/")[1] for name in observed} == {"block1", "block2"}
    assert "observe/block2/confident_train" in observed  # of the one head that is there


def test_a_refused_resume_leaves_the_config_of_the_run(finished, again, capsys):
    before = (finished / "config.yaml").read_bytes()
    refused = fault(capsys, *again, "--trainer.max_epochs=9", "--model.optimizer.lr=0.7")
    assert "3 blocks of 2 epochs each take 6 epochs" in refused
    assert (finished / "config.yaml").read_bytes() == before


def test_a_finished_run_of_so_many_epochs_is_not_advised_to_take_more(again, capsys):
    assert fault(capsys, *again).endswith("is finished (6 epochs).")


def test_a_full_disk_loses_nothing(finished, tmp_path, capsys, monkeypatch):
    def full(file, start, size):
        if size > 1:  # a first byte still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", "--name=cut", *SMALL]
    sentence = fault(capsys, *command, f"--model.store.folder={tmp_path / 'store'}")
    assert "No space left on device" in sentence
    assert "--ckpt_path last" in sentence
    main([*command, "--ckpt_path=last"])  # in memory
    ours, theirs = (torch.load(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path / "cut", finished))
    assert all(torch.equal(tensor, ours["state_dict"][name]) for name, tensor in theirs["state_dict"].items())
    ours, theirs = summary(tmp_path / "cut"), summary(finished)
    assert ours["metrics"]["test/top1"] == theirs["metrics"]["test/top1"]
    # The summary tells of the blocks before the stop too, and of the cost of heads that are gone.
    assert set(ours["metrics"]) == set(theirs["metrics"])
    assert ours["metrics"]["val/block1/top1"] == theirs["metrics"]["val/block1/top1"]
    assert ours["slowest_node_macs"] == theirs["slowest_node_macs"]


def test_a_schedule_that_does_not_end_with_its_block_is_told(capsys, tmp_path):
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", "--model.epochs_per_block=4"]
    sentence = fault(capsys, *command)
    assert "6 blocks of 4 epochs each take 24 epochs" in sentence
    assert "begins anew with every block: T_max counts that block's epochs" in sentence
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


def test_frozen_blocks_that_are_recomputed_are_counted_as_they_learn(finished, tmp_path):
    plain, recomputed = summary(finished), summary(run(tmp_path, "--model.recompute=true"))
    assert recomputed["slowest_node_macs"] == plain["slowest_node_macs"]
    assert recomputed["peak_activation_bytes"] < plain["peak_activation_bytes"]


def test_cost_counts_blocks_by_their_epochs(capsys):
    def cost(*options):
        main(["cost", "--config", str(CONFIG), *options])
        printed = capsys.readouterr().out
        sizes = json.loads(printed[printed.index("{") : printed.index("}") + 1])
        return float(re.search(r"one device +([\d.]+)", printed)[1]), {int(k): size for k, size in sizes.items()}

    (alike, sizes), (fewer, others) = cost(), cost("--model.epochs_per_block=[8,4,2,2,2,2]")
    assert [*others] == [0, 8, 12, 14, 16, 18]
    assert [*others.values()] == [*sizes.values()]
    assert fewer < alike  # the first, cheapest block has most of the epochs


def test_epochs_of_each_block_are_typed_as_a_list(tmp_path):
    folder = run(tmp_path, "--model.epochs_per_block=[2,1,1]", "--trainer.max_epochs=4")
    found = summary(folder)
    assert (found["epochs"], found["global_step"]) == (4, 16)


def test_bench_names_the_benchmark_of_single_blocks(capsys):
    assert "experiments.studies.layerwise" in fault(capsys, "bench", "--config", str(CONFIG))


def test_batch_sizes_that_cost_prints_can_be_typed(tmp_path):
    folder = run(tmp_path, '--data.batch_sizes={"0": 32, "2": 64, "4": 128}', "--trainer.limit_train_batches=1.0")
    assert summary(folder)["global_step"] == 2 * (41 + 21 + 11)


def test_partitions_train_with_the_batches_that_fill_backpropagations_memory():
    small = partial(VGG, plan=(4, "M", 8))
    task = partitions.Task(Digits, Augment(), 256, small, (1, 2), 1, 1e-4, 1, (0.0, 1.1))
    run = partitions.train(task, "data", units=1, filled=True, seed=0)
    assert len(run.batch_sizes) == 2
    assert min(run.batch_sizes) > 256
    assert run.rate == pytest.approx(partitions.RATE * min(run.batch_sizes) / 256)
    (first, top1), (second, _) = run.curve
    assert 0 < first < second
    assert (run.seconds_to(0.0), run.seconds_to(1.1)) == (first, None)
    assert 0 <= top1 <= 1


def test_times_to_an_accuracy_are_over_those_of_the_same_seeds_backpropagation():
    def run(units, seed, *curve):
        return partitions.Run(units, False, seed, [64], 0.05, curve, test=curve[-1][1])

    runs = [run(2, 0, (1, 0.5), (2, 0.9)), run(2, 1, (2, 0.7), (4, 0.9)), run(1, 3, (1, 0.9))]
    runs += [run(1, 0, (1, 0.8), (3, 0.9)), run(1, 1, (1, 0.6), (2, 0.7))]
    single, whole = partitions.rows(runs, (0.7, 0.85))
    assert whole == [
        "all",
        "64",
        "0.050",
        "90.00 ± 0.00",
        "90.00 ± 0.00",
        "1.00 (3.0 s)",
        "1.00 (2.0 s)",
        "1.00 (3.0 s)",
    ]
    # 0.7 after 1 of 2 s and 2 of 2 s; one seed never reaches 0.85; a seed without backpropagation does not count.
    assert single == ["1", "64", "0.050", "80.00 ± 14.14", "80.00 ± 14.14", "1.00 (2.5 s)", "0.75 (1.5 s)", "–"]
