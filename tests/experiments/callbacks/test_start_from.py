"""Training that begins with another run's blocks."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import fault, fit, summary

from experiments.callbacks.start_from import StartFrom
from experiments.run.errors import RunError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

BRIEF = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.callbacks+=StartFrom")


def weights_of(folder):
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.split(".", 2)[2]: weight for name, weight in state.items() if name.startswith("blocks.")}


def test_first_blocks_are_another_runs_and_stay_so_if_frozen(finished, tmp_path):
    """The finished run has four blocks of a unit each: two of the units make one frozen block here, another cut."""
    copied = shutil.copytree(finished, tmp_path / "other")
    cut = ("--model.num_blocks=2", "--model.cut.after=[conv3]", "--model.frozen_blocks=1")
    folder = fit(tmp_path, *BRIEF, "--trainer.callbacks.run=other", "--trainer.callbacks.blocks=1", *cut)
    theirs, ours = weights_of(copied), weights_of(folder)
    same = {name for name, weight in ours.items() if torch.equal(weight, theirs[name])}
    first = {name for name in ours if name.startswith(("conv1", "conv2", "conv3"))}
    assert len(first) > 10  # BatchNorm's statistics too
    assert same == first
    assert {name for name in summary(folder)["metrics"] if name.startswith("test/block")} == {
        f"test/block2/{metric}" for metric in ("loss", "top1", "top5")
    }  # the first one's head never learns

    shutil.rmtree(copied)  # which a resumed run does not need
    more = ("--trainer.max_epochs=2", "--ckpt_path=last", "--trainer.callbacks.run=other")
    fit(tmp_path, *BRIEF[1:], *cut, *more)
    assert all(torch.equal(weights_of(folder)[name], ours[name]) for name in first)
    assert not torch.equal(weights_of(folder)["conv4.0.weight"], ours["conv4.0.weight"])


@pytest.mark.parametrize(("asked", "begun"), [((), {1, 2, 3, 4}), (("--trainer.callbacks.blocks=2",), {1, 2})])
def test_as_many_blocks_begin_as_another_runs_as_are_asked_for(asked, begun, finished, tmp_path):
    rate = ("--model.optimizer.lr=0", "--seed_everything=7")
    folder = fit(tmp_path, *BRIEF, f"--trainer.callbacks.run={finished}", *asked, *rate)
    theirs, ours = weights_of(finished), weights_of(folder)
    convolutions = {k: f"conv{k}.0.weight" for k in range(1, 5)}
    assert {k for k, name in convolutions.items() if torch.equal(ours[name], theirs[name])} == begun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.network.plan=[8,8,M,16,32]",), "block4 cannot begin with the weights of"),
        (("--model.frozen_blocks=4",), "frozen_blocks must leave one of 4 to learn: 0 to 3"),
        (("--trainer.callbacks.run=nowhere",), "There is no run nowhere"),
    ],
)
def test_what_cannot_begin_so_is_told(options, message, finished, tmp_path, capsys):
    digits = "experiments/configs/decoupled_greedy/digits.yaml"
    given = ("--model.network.plan=[8,8,M,16,16]", f"--trainer.callbacks.run={finished}", f"--runs={tmp_path}")
    assert message in fault(capsys, "fit", "--config", digits, *BRIEF, *given, *options)


def test_a_run_on_images_of_another_size_is_refused(finished):
    model = DecoupledGreedy(partial(VGG, plan=[8, 8, "M", 16, 16]), (1, 12, 12), 10, num_blocks=4)
    begun = SimpleNamespace(global_step=0, default_root_dir=finished)
    with pytest.raises(RunError, match="images of 1×8×8, the data set given has 1×12×12"):
        StartFrom(str(finished)).on_train_start(begun, model)


def test_methods_without_units_are_refused(finished, tmp_path, capsys):
    config = "experiments/configs/closed_form/digits.yaml"
    given = (*BRIEF[2:], f"--trainer.callbacks.run={finished}", f"--runs={tmp_path}")
    assert "ClosedFormMLP has none" in fault(capsys, "fit", "--config", config, *given)
