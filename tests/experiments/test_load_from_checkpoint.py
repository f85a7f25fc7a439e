"""A model from a run's checkpoint alone; what is typed beside ``--ckpt_path`` wins over what a checkpoint holds."""

import sys
from functools import partial

import pytest
import torch
import yaml
from helpers import CONFIGS, fit
from training import assert_equal_weights

import models
from losses.errors import UsageError
from models.method import Method
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.layerwise import Layerwise
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

BRIEF = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
QUICK = (*BRIEF, "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")
OPTIONS = {
    "closed_form": ("--trainer.max_epochs=2", "--model.widths=[20]"),
    "self_contrastive": ("--model.epochs_per_block=1", "--trainer.max_epochs=2"),
    "layerwise": ("--model.units_per_block=3", "--model.epochs_per_block=1", "--trainer.max_epochs=2"),
}
METHODS = sorted({path.parent.name for path in CONFIGS.glob("*/digits.yaml")} - {"communication", "probe"})


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def resumed(folder):
    """Lightning looks for arguments in a checkpoint that is given by its path."""
    return "--trainer.max_epochs=3", f"--ckpt_path={last(folder)}"


def saved(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built_again_from_its_checkpoint(method, tmp_path):
    config = CONFIGS / method / "digits.yaml"
    folder = fit(tmp_path, *QUICK, *OPTIONS.get(method, ()), config=config)
    built = getattr(models, yaml.safe_load(config.read_text())["model"]["class_path"].rpartition(".")[2])
    model = built.load_from_checkpoint(last(folder))
    assert type(model) is built
    assert (model.num_classes, tuple(model.image_shape)) == (10, (1, 8, 8))
    weights = saved(last(folder))["state_dict"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.state_dict().keys() == weights.keys()
    assert next(iter(model.block_features(torch.zeros(2, 1, 8, 8)))) == "block1/gap"


def test_arguments_may_be_given_otherwise_and_the_class_left_open(finished):
    model = Method.load_from_checkpoint(last(finished), compile=False, clip=2.0)
    assert type(model) is DecoupledGreedy
    assert (model.clip, model.num_blocks) == (2.0, 4)


@pytest.mark.parametrize(
    ("method", "file", "said"),
    [
        (
            Layerwise,
            "checkpoints/last.ckpt",
            "a checkpoint of DecoupledGreedy, not of Layerwise: import DecoupledGreedy from mod",
        ),
        (DecoupledGreedy, "", "is a folder: give the checkpoint in it, .*run/checkpoints/last.ckpt"),
    ],
)
def test_what_it_cannot_be_built_from_is_told(method, file, said, finished):
    with pytest.raises(UsageError, match=said):
        method.load_from_checkpoint(finished / file)


def test_a_checkpoint_from_before_takes_the_arguments_by_name(finished, tmp_path):
    content, path = saved(last(finished)), tmp_path / "old.ckpt"
    del content["arguments"]
    torch.save(content, path)
    network, head = partial(VGG, plan=[8, 8, "M", 16, 16]), partial(AuxHead, hidden=16)
    arguments = {"network": network, "head": head, "image_shape": (1, 8, 8), "num_classes": 10, "num_blocks": 4}
    model = DecoupledGreedy.load_from_checkpoint(path, **arguments)
    assert_equal_weights(model, DecoupledGreedy.load_from_checkpoint(last(finished)))


NETWORK = """from torch import nn


def make(image_shape, num_classes) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""

SHY = """from models.methods.decoupled_greedy import DecoupledGreedy


class Shy(DecoupledGreedy):
    def __init__(self, shyness: float = 0.5, **arguments):
        super().__init__(**arguments)
        self.shyness = shyness
"""


def test_a_method_in_a_file_of_its_own_is_built_again(tmp_path, monkeypatch):
    (tmp_path / "shy.py").write_text(SHY)
    monkeypatch.syspath_prepend(tmp_path)
    folder = fit(tmp_path / "runs", *QUICK, "--model=shy.Shy", "--model.shyness=0.25")
    model = sys.modules["shy"].Shy.load_from_checkpoint(last(folder))
    assert (model.shyness, model.network_name) == (0.25, "VGG")


def test_whose_network_is_not_found_is_told_where_it_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(NETWORK)
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path)
        folder = fit(tmp_path / "runs", *QUICK, "--model.network=mynet.make", "--model.num_blocks=1")
        del sys.modules["mynet"]
    with pytest.raises(
        UsageError,
        match=r"No module named 'mynet'\. Start from the folder that your own files are in, or put it on PYTHONPATH\.$",
    ):
        DecoupledGreedy.load_from_checkpoint(last(folder))


def test_what_is_typed_wins_over_what_the_checkpoint_holds(copied, tmp_path):
    fit(tmp_path, "--model.clip=0.25", "--model.network.dropout=0.5", *resumed(copied))
    content = saved(last(copied))
    assert content["epoch"] == 2
    assert content["arguments"]["clip"] == 0.25
    assert content["arguments"]["network"]["init_args"]["dropout"] == 0.5
    assert yaml.safe_load((copied / "config.yaml").read_text())["model"]["init_args"]["clip"] == 0.25


def test_a_checkpoint_from_before_is_resumed(copied, tmp_path):
    content = saved(last(copied))
    del content["arguments"]
    torch.save(content, last(copied))
    fit(tmp_path, *resumed(copied))
    assert saved(last(copied))["epoch"] == 2
