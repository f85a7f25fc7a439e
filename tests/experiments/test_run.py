"""``fit`` and its run folder; validate, test, predict; resume."""

import contextlib
import csv
import os
import random
import re
import signal
import time
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torch.multiprocessing as mp
import yaml
from helpers import DIGITS, FORK, SMALL, fault, fit, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.callbacks.meter import Meter
from experiments.cli import main
from experiments.run.checkpoint import load_checkpoint
from experiments.run.errors import RunError
from experiments.run.folder import default_name
from experiments.run.loggers import RunCSVLogger, RunTensorBoardLogger
from experiments.run.saved_config import changes
from experiments.studies.kills import left
from experiments.trainer import Trainer
from models.local_learning import LocalLearning


def checkpoint(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def scalars(folder, tag):
    page = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in page.Scalars(tag)]


# -- the run folder -------------------------------------------------------------------------------


def test_run_folder_holds_everything(finished):
    names = {path.name for path in finished.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert events
    assert names - events == {"config.yaml", "metrics.csv", "summary.json", "checkpoints"}
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    accuracies = [float(row["val/top1"]) for row in rows(finished) if row["val/top1"]]
    assert checkpoint(finished, "best")["epoch"] == accuracies.index(max(accuracies))
    assert len(set(accuracies)) == 2  # so that the worst would be another


def test_summary_says_what_was_run_and_reached(finished):
    figures = summary(finished)
    expected = {
        "name": "run",
        "method": "DecoupledGreedy",
        "network": "VGG",
        "dataset": "Digits",
        "seed": 0,
        "num_blocks": 4,
        "num_groups": 1,
        "epochs": 2,
        "global_step": 8,
    }
    assert {key: figures[key] for key in expected} == expected
    assert figures["seconds"] > 0
    assert figures["images_per_second"] > 0
    assert figures["peak_activation_bytes"] > 0
    assert figures["parameters"] == sum(
        t.numel() for n, t in checkpoint(finished)["state_dict"].items() if is_weight(n)
    )
    assert set(figures["versions"]) == {"python", "torch", "torchvision", "lightning", "local-learning"}
    wanted = [f"{split}/block{k}/top1" for split in ("val", "test") for k in range(1, 5)]
    wanted += ["val/top1", "test/top1", "val/ensemble/top1", "test/ensemble/top1"]
    assert all(0 <= figures["metrics"][name] <= 1 for name in wanted)
    assert figures["metrics"]["test/top1"] == figures["metrics"]["test/block4/top1"]


def is_weight(name):
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_measured_memory_is_the_predicted_one(finished, capsys):
    import json

    main(["cost", "--config", str(finished / "config.yaml"), "--json"])
    predicted = json.loads(capsys.readouterr().out)["peak_activation_bytes"]
    loss = 64 * 10 * 4 + 64 * 8 + 4
    assert summary(finished)["peak_activation_bytes"] == predicted + loss


def test_csv_and_tensorboard_hold_the_same_figures(finished):
    for tag in ("train/block2/loss", "train/block4/grad_norm", "train/block1/lr", "val/block3/top1"):
        from_csv = {int(row["step"]): float(row[tag]) for row in rows(finished) if row[tag]}
        assert dict(scalars(finished, tag)) == pytest.approx(from_csv)
        assert from_csv
    steps = [step for step, _ in scalars(finished, "train/block1/loss")]
    assert steps == [1, 3, 5, 7]


def test_tensorboard_shows_batch_cut_and_all_blocks_in_one_chart(finished):
    page = EventAccumulator(str(finished), size_guidance={"images": 0}).Reload()
    assert page.Tags()["images"] == ["train/augmented_batch"]
    assert page.Images("train/augmented_batch")[0].width > 300
    tensors = page.Tags()["tensors"]
    cut = page.Tensors("cut/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "conv1" in cut
    assert "M MACs" in cut
    assert "custom_scalars__config__" in tensors


def test_saved_config_runs_again_with_the_same_result(finished, tmp_path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert not {"name", "runs", "ckpt_path"} & set(config)
    again = fit(tmp_path, config=finished / "config.yaml")
    ours, theirs = checkpoint(again)["state_dict"], checkpoint(finished)["state_dict"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ten_steps_are_ten_batches(tmp_path):
    folder = fit(tmp_path, "--trainer.max_epochs=-1", "--trainer.max_steps=10")
    assert summary(folder)["global_step"] == 10
    assert checkpoint(folder)["global_step"] == 10


def test_seed_changes_the_run_but_not_the_held_out_images(tmp_path, finished):
    other = fit(tmp_path, "--seed_everything=1")
    assert summary(other)["seed"] == 1
    assert summary(other)["metrics"]["val/loss"] != summary(finished)["metrics"]["val/loss"]


def test_default_names_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["fit", "--config", str(DIGITS), *SMALL, "--trainer.max_epochs=1"]
    main(command)
    main(command)
    main([*command, "--trainer.max_epochs=2", "--ckpt_path=last"])  # goes on with the second
    assert {path.name: summary(path)["epochs"] for path in Path("runs").iterdir()} == {
        "decoupled_greedy-vgg-digits-K4-seed0": 1,
        "decoupled_greedy-vgg-digits-K4-seed0-2": 2,
    }


@pytest.mark.parametrize(("blocks", "name"), [(3, "layerwise-digits-K3-seed0"), (None, "layerwise-digits-seed0")])
def test_a_number_of_blocks_that_is_not_given_is_not_in_the_default_name(blocks, name):
    model = {"class_path": "models.Layerwise", "init_args": {"num_blocks": blocks}}
    config = {"model": model, "data": {"class_path": "datamodules.Digits"}, "seed_everything": 0}
    assert default_name(config) == name


def test_fast_dev_run_leaves_nothing(tmp_path):
    fit(tmp_path / "runs", "--trainer.fast_dev_run=true")
    assert not (tmp_path / "runs").exists()


# -- other commands on a finished run ---------------------------------------------------------------


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_of_a_checkpoint_repeats_its_figures(command, finished, capsys):
    main([command, "--config", str(finished / "config.yaml"), f"--ckpt_path={finished / 'checkpoints/last.ckpt'}"])
    split = {"validate": "val", "test": "test"}[command]
    printed = re.search(rf"{split}/ensemble/top1\W+([\d.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(summary(finished)["metrics"][f"{split}/ensemble/top1"])


def test_predict_writes_one_line_per_test_image(copied):
    options = ["--config", str(copied / "config.yaml"), f"--ckpt_path={copied / 'checkpoints/last.ckpt'}"]
    main(["predict", *options])
    with (copied / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert [int(row["index"]) for row in predictions] == list(range(360))
    assert all(0.1 <= float(row["probability"]) <= 1 for row in predictions)
    from datamodules.digits import Digits

    labels = Digits().load(train=False).labels.tolist()
    assert [int(row["label"]) for row in predictions] == labels
    accuracy = sum(int(row["class"]) == y for row, y in zip(predictions, labels, strict=True)) / len(labels)
    assert accuracy == pytest.approx(summary(copied)["metrics"]["test/top1"], abs=1e-6)


# -- resume ------------------------------------------------------------------------------------------


def in_a_step(stop):
    """Stop after the tenth step."""
    original = LocalLearning.on_train_batch_end

    def stopping(self, *args):
        original(self, *args)
        if self.trainer.global_step == 10:
            stop()

    LocalLearning.on_train_batch_end = stopping


def while_saving(stop, last_is_there=False):
    """Stop when the best checkpoint of the third epoch is there, and its last is not yet."""
    original = L.Trainer.save_checkpoint

    def stopping(self, path, *args, **arguments):
        now = self.global_step == 12 and str(path).endswith("last.ckpt")
        if now and not last_is_there:
            stop()
        original(self, path, *args, **arguments)
        if now:
            stop()

    L.Trainer.save_checkpoint = stopping


def just_saved(stop):
    """Stop when the third epoch's checkpoints are there, and Lightning has not ended it."""
    while_saving(stop, last_is_there=True)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)


RESUMED = (
    "--trainer.max_epochs=4",
    "--model.network.dropout=0.1",
    "--trainer.callbacks+=experiments.callbacks.Entropy",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), *RESUMED)


def broken(moment, stop, command, printed):
    """What the process does that breaks off; as many threads as here."""
    torch.set_num_threads(1)
    moment(stop)
    with printed.open("w") as file, contextlib.redirect_stdout(file):
        main(command)


def run_broken(moment, stop, tmp_path, *options):
    """Train in a process of its own that breaks off at a moment; its exit code and what it printed."""
    command = ["fit", "--config", str(DIGITS), f"--runs={tmp_path}", "--name=run", *SMALL, *options]
    process = mp.get_context(FORK).Process(target=broken, args=(moment, stop, command, printed := tmp_path / "printed"))
    process.start()
    process.join()
    return process.exitcode, printed.read_text()


@pytest.mark.parametrize(("moment", "saved"), [(in_a_step, 8), (while_saving, 8), (just_saved, 12)])
def test_killed_and_resumed_run_equals_one_that_was_not(moment, saved, undisturbed, tmp_path):
    exit_code, _ = run_broken(moment, killed, tmp_path, *RESUMED)
    assert exit_code == -signal.SIGKILL
    assert checkpoint(tmp_path / "run")["global_step"] == saved

    fit(tmp_path, *RESUMED, "--ckpt_path=last")
    assert_same_end(tmp_path / "run", undisturbed)


def assert_same_end(folder, undisturbed):
    ours, theirs = checkpoint(folder), checkpoint(undisturbed)
    assert ours["global_step"] == theirs["global_step"] == 16
    assert all(torch.equal(ours["state_dict"][name], tensor) for name, tensor in theirs["state_dict"].items())
    assert len(ours["optimizer_states"]) == len(theirs["optimizer_states"]) == 4
    for one, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert one["param_groups"] == other["param_groups"]
        for key, state in other["state"].items():
            assert torch.equal(one["state"][key]["momentum_buffer"], state["momentum_buffer"])
    ours, theirs = left(folder), left(undisturbed)
    assert {"train/block2/loss", "val/block4/top1", "entropy/total/update_h8"} < theirs["TensorBoard"].keys()
    for what, content in theirs.items():
        assert ours[what] == content, what


def test_a_finished_run_is_not_resumed_and_keeps_its_summary(copied, tmp_path, capsys):
    before = (copied / "summary.json").read_bytes()
    (copied / ".unfinished").touch()  # it was killed when it had all but removed that
    again = ("fit", "--config", str(DIGITS), *SMALL, f"--runs={tmp_path}", "--name=run", "--ckpt_path=last")
    message = fault(capsys, *again, "--trainer.max_epochs=2")
    assert "is finished (2 epochs)" in message
    assert "--trainer.max_epochs" in message
    assert (copied / "summary.json").read_bytes() == before
    assert not (copied / ".unfinished").exists()


def test_all_else_is_written_before_the_summary(copied, tmp_path, monkeypatch):
    def killed(path, content):
        raise SystemExit(137)

    page = EventAccumulator(str(copied)).Reload().Scalars("test/top1")
    assert [point.step for point in page] == [8] * len(page)  # those of the HPARAMS tab too: a resume forgets them
    (copied / "summary.json").unlink()
    monkeypatch.setattr("experiments.local_learning_cli.write_json", killed)
    with pytest.raises(SystemExit):
        fit(tmp_path, "--ckpt_path=last")
    again = EventAccumulator(str(copied)).Reload().Scalars("test/top1")
    assert [(point.step, point.value) for point in again] == [(point.step, point.value) for point in page]


def test_a_resumed_run_names_what_was_changed_and_saves_it(copied, tmp_path, capsys):
    changed = ("--model.optimizer.lr=0.5", "--trainer.max_epochs=3", "--data.num_workers=0", "--seed_everything=1")
    fit(tmp_path, "--ckpt_path=last", *changed)
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert note == (
        "note: resumed with other settings than before: model.init_args.optimizer.init_args.lr 0.05 -> 0.5, "
        "seed_everything 0 -> 1. Optimizers and schedules go on with the checkpoint's: rates stay where a schedule had "
        "ended."
    )
    saved = yaml.safe_load((copied / "config.yaml").read_text())
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5
    assert checkpoint(copied)["optimizer_states"][0]["param_groups"][0]["lr"] < 0.05


def test_a_resumed_run_says_nothing_of_what_may_change(copied, tmp_path, capsys):
    free = ("--trainer.max_epochs=3", f"--data.root={tmp_path}", "--trainer.log_every_n_steps=1")
    fit(tmp_path, "--ckpt_path=last", *free)
    assert "note: " not in capsys.readouterr().err
    assert yaml.safe_load((copied / "config.yaml").read_text())["trainer"]["max_epochs"] == 3


def test_another_class_is_named_without_the_options_that_the_other_has_not(copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    other = yaml.safe_load((copied / "config.yaml").read_text())
    assert changes(config, other) == []
    other["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.05, "eps": 1}}
    other["model"]["init_args"]["scheduler"] = None
    assert changes(config, other) == [
        "model.init_args.optimizer.class_path torch.optim.SGD -> torch.optim.Adam",
        "model.init_args.scheduler.class_path torch.optim.lr_scheduler.CosineAnnealingLR -> unset",
    ]


@pytest.fixture
def no_memory(monkeypatch):
    """No step succeeds."""

    def failing(self, *_):
        raise MemoryError

    monkeypatch.setattr(LocalLearning, "training_step", failing)


def test_a_run_that_broke_off_in_its_first_step_has_its_config(no_memory, tmp_path):
    with pytest.raises(MemoryError):
        fit(tmp_path)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_a_resume_that_broke_off_in_its_first_step_leaves_the_config(no_memory, copied, tmp_path):
    before = (copied / "config.yaml").read_bytes()
    with pytest.raises(MemoryError):
        fit(tmp_path, "--ckpt_path=last", "--trainer.max_epochs=3", "--model.optimizer.lr=0.5")
    assert (copied / "config.yaml").read_bytes() == before


def test_a_run_cut_off_before_its_summary_gets_the_same_one(copied, tmp_path):
    before = summary(copied)
    (copied / "summary.json").unlink()
    fit(tmp_path, "--ckpt_path=last")
    after = summary(copied)
    figures = {name: value for name, value in before["metrics"].items() if name.startswith(("val/", "test/"))}
    assert figures.items() <= after["metrics"].items()
    assert (after["epochs"], after["global_step"]) == (before["epochs"], before["global_step"])


def test_time_and_speed_of_a_resumed_run_are_those_of_the_whole():
    meter, resumed = Meter(), Meter()
    meter.seconds, meter._rates = 12.0, [100.0, 300.0]
    resumed.load_state_dict(meter.state_dict())
    assert (resumed.seconds, resumed.images_per_second) == (12, 200)


def test_rows_that_a_resumed_run_writes_again_are_dropped(tmp_path):
    for steps, logger in ((range(4), RunCSVLogger(tmp_path)), (range(2, 4), RunCSVLogger(tmp_path, resume_step=2))):
        for step in steps:
            logger.log_metrics({"loss": 0.5}, step)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def test_a_resume_that_is_refused_before_it_logs_drops_no_rows(tmp_path):
    RunCSVLogger(tmp_path).log_metrics({"loss": 0.5}, 3)
    before = (tmp_path / "metrics.csv").read_bytes()
    RunCSVLogger(tmp_path, resume_step=0).finalize("failed")
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_new_metric_gets_a_column_and_the_rows_before_have_it_empty(tmp_path):
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"b": torch.tensor(0.5)}, 0)
    logger.log_metrics({"a": 2.0}, 1)
    logger.log_metrics({"b": 3.0}, 2)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["a,b,step", ",0.5,0", "2.0,,1", ",3.0,2"]


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        (b"1,0.5\n2,0.25\n3,0.1", ["1", "2"]),
        (b"1,0.5\n\0\n2,0.25\n", ["1", "2"]),
        (b"1,0.5\n2,\xff\n,,,\nx\n", ["1", "2"]),
    ],
    ids=["cut", "NUL", "no UTF-8"],
)
def test_a_damaged_table_of_metrics_does_not_block_a_resume(damaged, kept, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\n" + damaged)
    RunCSVLogger(tmp_path, resume_step=4).log_metrics({"loss": 1.0}, 4)
    assert [row["step"] for row in rows(tmp_path)] == [*kept, "4"]


def test_a_table_whose_head_is_not_legible_is_put_aside(tmp_path):
    (tmp_path / "metrics.csv").write_text("\0\nst,loss\n1,0.5\n")
    RunCSVLogger(tmp_path, resume_step=4).log_metrics({"loss": 1.0}, 4)
    assert [row["step"] for row in rows(tmp_path)] == ["4"]
    assert "1,0.5" in (tmp_path / "metrics.csv.damaged").read_text()


def test_a_run_resumed_within_a_second_is_read_after_its_beginning(tmp_path):
    beginning = tmp_path / f"events.out.tfevents.{int(time.time())}.zzz.99999.0"
    beginning.touch()
    RunTensorBoardLogger(tmp_path, resume_step=1).experiment.close()
    assert len(files := sorted(tmp_path.iterdir())) == 2
    assert files[0] == beginning


def test_a_run_resumed_after_the_clock_was_set_back_is_read_after_its_beginning(tmp_path):
    for begun, name in ((100, "b"), (200, "a")):
        (tmp_path / f"events.out.tfevents.{int(time.time()) + begun}.{name}.99999.0").touch()
    RunTensorBoardLogger(tmp_path, resume_step=1).experiment.close()
    seconds, hosts = zip(*(file.name.split(".")[3:5] for file in sorted(tmp_path.iterdir())), strict=True)
    assert hosts[:2] == ("b", "a")
    assert len(set(seconds)) == 3
    assert int(seconds[-1]) <= time.time()


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_offered(copied, tmp_path, capsys):
    last = copied / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    options = ("--config", str(DIGITS), *SMALL, f"--runs={tmp_path}", "--name=run", "--trainer.max_epochs=3")
    message = fault(capsys, "fit", *options, "--ckpt_path=last")
    offered = copied / "checkpoints" / "previous.ckpt"
    assert str(last) in message
    assert f"--ckpt_path {offered}" in message
    assert "epoch 1" in message
    main(["fit", *options, f"--ckpt_path={offered}"])
    assert summary(copied)["global_step"] == 12


def test_a_checkpoint_with_a_flipped_bit_is_told_or_holds_the_same(tmp_path):
    weights, file, draw = torch.randn(50), tmp_path / "last.ckpt", random.Random(0)
    torch.save({"state_dict": {"weight": weights}, "epoch": 1}, file)
    whole, told = file.read_bytes(), 0
    for bit in draw.sample(range(8 * len(whole)), 200):
        file.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            assert torch.equal(load_checkpoint(file)["state_dict"]["weight"], weights)  # a bit that nobody reads
        except RunError as fault:
            assert "is damaged or not one of ours" in str(fault)  # noqa: PT017
            told += 1
    assert told > 100


def test_a_run_without_validation_comes_to_its_end(tmp_path):
    metrics = summary(fit(tmp_path, "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"))["metrics"]
    assert "test/top1" in metrics
    assert not any(name.startswith("val/") for name in metrics)


def test_a_termination_signal_is_no_success_and_says_how_to_go_on(tmp_path):
    exit_code, printed = run_broken(in_a_step, terminated, tmp_path, "--trainer.max_epochs=4")
    assert exit_code == 128 + signal.SIGTERM
    assert "--name run --ckpt_path last" in printed


def test_ctrl_c_leaves_the_last_checkpoint_good_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    step = LocalLearning.training_step

    def interrupted(self, batch, index):
        if self.global_step == 10:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(LocalLearning, "training_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, "--trainer.max_epochs=4")
    assert stop.value.code == 130
    assert "--name run --ckpt_path last" in capsys.readouterr().out
    assert not (tmp_path / "run" / "summary.json").exists()
    assert checkpoint(tmp_path / "run")["global_step"] == 8
    assert all(tensor.isfinite().all() for tensor in checkpoint(tmp_path / "run")["state_dict"].values())


# Half precision on a CPU


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"arm_bf16": True}, True),
        ({}, True),  # who knows
    ],
)
def test_bfloat16_without_instructions_for_it_is_told_to_be_slow(capabilities, fast, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr("experiments.trainer.note", told.append)
    for precision in ("32-true", "bf16-mixed"):
        Trainer(precision=precision, accelerator="cpu", logger=False, default_root_dir=tmp_path)
        assert bool(told) == (precision == "bf16-mixed" and not fast)
    assert all("no bfloat16 instructions" in message for message in told)
