"""ClosedFormMLP through the command line: run folder, resume, pictures, commands that do not apply."""

import pytest
import torch
from helpers import CONFIGS, fault, fit, summary
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.toys import Checkerboard
from experiments.cli import main
from experiments.report.rows import group
from experiments.report.runs import find_runs
from models.methods.closed_form import ClosedFormMLP

CONFIG = CONFIGS / "closed_form" / "checkerboard.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")
SMALL = ("--model.widths=[30,20]", "--trainer.max_epochs=3", *QUIET)
BACKPROP = ("--model.network.hidden=[30]", "--trainer.check_val_every_n_epoch=1", *QUIET)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), *SMALL, config=CONFIG)


@pytest.fixture(scope="module")
def descended(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), *BACKPROP, config=CONFIGS / "backprop" / "checkerboard.yaml")


def test_summary_says_what_was_solved_and_reached(finished):
    figures = summary(finished)
    expected = {"method": "ClosedFormMLP", "network": "MLP-30-20", "dataset": "Checkerboard", "num_blocks": 2}
    expected |= {"num_groups": 1, "epochs": 3, "global_step": 39, "peak_activation_bytes": 0}
    expected |= {"parameters": 3 * 30 + 31 * 20 + (3 + 31 + 21) * 2}
    assert {key: figures[key] for key in expected} == expected
    assert figures["images_per_second"] > 0
    metrics = figures["metrics"]
    assert metrics["test/top1"] == metrics["test/block2/top1"]
    assert metrics["train_set/top1"] == metrics["train_set/block2/top1"]
    wanted = {"test/input/top1", "train/block1/target_r2", "train/block2/condition", "train/block2/effective_rank"}
    assert wanted <= set(metrics)


def test_tensorboard_shows_the_regions_and_the_folder_holds_them(finished):
    assert (finished / "decision_regions.png").is_file()
    page = EventAccumulator(str(finished), size_guidance={"images": 0}).Reload()
    assert page.Tags()["images"] == ["decision_regions"]
    assert [event.step for event in page.Scalars("val/top1")] == [12, 25, 38]


def test_a_run_stopped_between_layers_goes_on(finished, tmp_path, monkeypatch):
    solve = ClosedFormMLP.solve

    def interrupted(self):
        if int(self.solved) == 1:
            raise KeyboardInterrupt
        return solve(self)

    with monkeypatch.context() as patch:
        patch.setattr(ClosedFormMLP, "solve", interrupted)
        with pytest.raises(SystemExit):
            fit(tmp_path, *SMALL, config=CONFIG)
    resumed = fit(tmp_path, *SMALL, "--ckpt_path=last", config=CONFIG)
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (resumed, finished)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert summary(resumed)["metrics"]["test/top1"] == summary(finished)["metrics"]["test/top1"]


def test_training_accuracy_is_that_of_the_last_weights_on_the_training_split(finished):
    model = ClosedFormMLP((2, 1, 1), 2, [30, 20])
    model.load_state_dict(torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    data = Checkerboard(seed=0)
    data.setup("fit")
    split = data.training_images
    batch = split.__getitems__(torch.arange(len(split)))
    right = model(data.normalised(batch.images)).argmax(dim=1) == batch.labels
    assert summary(finished)["metrics"]["train_set/top1"] == pytest.approx(float(right.float().mean()))


def test_training_accuracy_of_what_predicts_nothing_is_refused(tmp_path, capsys):
    config = CONFIGS / "blockwise_ssl" / "digits.yaml"
    callback = "--trainer.callbacks+=experiments.callbacks.TrainingAccuracy"
    assert "predicts no classes" in fault(capsys, "fit", "--config", str(config), f"--runs={tmp_path}", callback)


def test_pictures_have_a_panel_per_prediction_whatever_the_method(finished, descended):
    three, one = (Image.open(folder / "decision_regions.png") for folder in (finished, descended))
    assert three.width == pytest.approx(3 * one.width, rel=0.05)
    colours = [len(set(image.convert("RGB").resize((60, 60), 0).getdata())) for image in (three, one)]
    assert min(colours) > 2


def test_report_compares_it_with_backprop_but_takes_it_for_none(finished, descended):
    assert summary(descended)["metrics"]["train_set/top1"] > 0.4
    rows = group(find_runs([finished, descended]))
    assert [row.first["method"] for row in rows] == ["Backprop", "ClosedFormMLP"]
    assert "images_per_second" not in rows[1].ratio


def test_predictions_are_written(finished):
    config, last = finished / "config.yaml", finished / "checkpoints" / "last.ckpt"
    main(["predict", "--config", str(config), f"--ckpt_path={last}"])
    lines = (finished / "predictions.csv").read_text().splitlines()
    assert len(lines) == 2001
    (finished / "predictions.csv").unlink()


def test_its_layers_can_be_probed(finished):
    main(["probe", "--checkpoint", str(finished), "--epochs=1", "--random=true", "--supervised_epochs=1"])
    metrics = summary(finished)["metrics"]
    wanted = {"probe_lin1/block2/gap/top1", "random/probe_lin1/block1/gap/top1", "supervised/test/top1"}
    assert wanted <= set(metrics)


def test_linear_regression_is_a_run_without_blocks(tmp_path, capsys):
    folder = fit(tmp_path, "--model.widths=[]", *QUIET, "--trainer.max_epochs=1", config=CONFIG)
    assert (summary(folder)["network"], summary(folder)["num_blocks"]) == ("linear", 0)
    assert summary(folder)["metrics"]["test/top1"] < 0.6
    main(["report", str(folder)])
    assert "linear has no block" in fault(capsys, "probe", f"--checkpoint={folder}")


@pytest.mark.parametrize("command", ["cost", "bench"])
def test_commands_about_backward_passes_say_that_there_are_none(command, capsys):
    assert "ClosedFormMLP has none" in fault(capsys, command, "--config", str(CONFIG))


def test_regions_of_points_in_more_dimensions_are_refused(tmp_path, capsys):
    command = ["fit", "--config", str(CONFIG), f"--runs={tmp_path}", *QUIET, "--data=NoisyProducts"]
    assert "NoisyProducts has no points of 2 coordinates" in fault(capsys, *command)
    assert not list(tmp_path.iterdir())
