"""Neuron groups on processes of their own train as in one process: features and predictions are all they exchange."""

import csv
import os
import re
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import torch.distributed as dist
from helpers import in_processes, summary
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import Adam
from training import Batches, batches, made, train

from experiments.callbacks.entropy import Entropy
from experiments.callbacks.online_probe import OnlineProbe
from experiments.cli import main
from experiments.distributed.block_parallel import BlockParallel
from experiments.distributed.groups_apart import GroupsApart
from losses.errors import UsageError
from models.methods.neuron_groups import NeuronGroups
from models.networks.groups.own import OwnGroups
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG
from models.parts.optimizers import BlockLARS

SHORT = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1")
vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
resnet = partial(CifarResNet, depth=8, widths=(8, 8, 16, 16))
grouped = partial(made, NeuronGroups, num_blocks=2, num_groups=4, head=LinearHead)


def pre_activated(image_shape, num_classes):
    """Units with BatchNorm before their convolution: every group reads what all normalise."""
    units = [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
    ]
    return nn.Sequential(*units, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)))


METHODS = {
    "full sharing": partial(grouped, vgg, clip=0.1),
    "identity shortcuts": partial(grouped, resnet, num_blocks=4, head=AuxHead, optimizer=partial(Adam, lr=1e-3)),
    "between blocks": partial(grouped, vgg, num_blocks=4, sharing="between_blocks", recompute=True),
    "thin networks": partial(grouped, vgg, sharing="none", head=AuxHead),
}


def fit(make, folder, name, resume=None, callbacks=(), **options):
    model = make()
    last = ModelCheckpoint(folder, name, save_on_train_epoch_end=True, enable_version_counter=False)
    options = {"limit_train_batches": 1.0, "enable_checkpointing": True, "use_distributed_sampler": False} | options
    data = Batches(batches(3))
    train(model, folder, data, resume=resume, callbacks=[last, OnlineProbe(), Entropy(), *callbacks], **options)
    assert "total_norm" not in vars(model)
    return torch.load(folder / f"{name}.ckpt", weights_only=False)


def work(rank, folder, port, processes):
    """Train for one epoch, and for one more; keep the bytes that are sent in each step of the first method."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, make in METHODS.items():
        strategy = partial(BlockParallel, groups_apart=2, first_blocks=[1, 2][: processes // 2])
        traffic = Traffic()
        fit(make, folder, name, max_epochs=1, devices=processes, strategy=strategy(), callbacks=[traffic])
        torch.save(traffic.of_steps, folder / f"{name} {rank}")
        fit(make, folder, name, resume=folder / f"{name}.ckpt", devices=processes, strategy=strategy())
    command = [*COMMAND, f"--runs={folder}", f"--trainer.devices={processes}"]
    main([*command, "--trainer.strategy=BlockParallel", "--trainer.strategy.groups_apart=2"])


COMMAND = (
    "fit",
    "--config=neuron_groups/digits",
    "--name=run",
    "--trainer.accelerator=cpu",
    "--trainer.callbacks+=Entropy",
    *SHORT,
)


class Traffic(L.Callback):
    """Bytes that each collective operation of a training step sends."""

    def __init__(self):
        self.of_steps = []

    def on_train_batch_start(self, *_):
        self._gather, self._reduce, now = dist.all_gather, dist.all_reduce, []

        def gather(parts, own, *group):
            now.append(own.nbytes)
            self._gather(parts, own, *group)

        def reduce(tensor, *args, **options):
            now.append(tensor.nbytes)
            return self._reduce(tensor, *args, **options)

        dist.all_gather, dist.all_reduce = gather, reduce
        self.of_steps.append(now)

    def on_train_batch_end(self, *_):
        dist.all_gather, dist.all_reduce = self._gather, self._reduce


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    in_processes(request.param, work, folder, find_free_network_port(), request.param)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_groups_apart_learn_as_in_one_process(name, several, tmp_path):
    theirs = torch.load(several / f"{name}.ckpt", weights_only=False)
    ours = fit(METHODS[name], tmp_path, name)
    for key in ("state_dict", "optimizer_states", "callbacks"):
        torch.testing.assert_close(tensors_of(ours[key]), tensors_of(theirs[key]), rtol=1e-4, atol=1e-5)


def test_a_command_trains_and_tests_as_one_process(several, tmp_path):
    main([*COMMAND, f"--runs={tmp_path}"])
    ours, theirs = (summary(folder / "run")["metrics"] for folder in (tmp_path, several))
    assert ours["test/top1"] == pytest.approx(theirs["test/top1"], abs=0.01)
    assert ours["val/block2/loss"] == pytest.approx(theirs["val/block2/loss"], rel=1e-3)
    # Entropies are of whole weights alone. Updates of the second epoch are left out: rounding has grown by then, and
    # one that is moved into another bin changes a small tensor's entropy by more.
    ours, theirs = (first_entropies(folder / "run") for folder in (tmp_path, several))
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, rel=1e-4)
    ours, theirs = (summary(folder / "run")["metrics"] for folder in (tmp_path, several))
    entropies = {name: value for name, value in theirs.items() if re.match("entropy/(?!total)(?!.*update)", name)}
    assert entropies == pytest.approx({name: ours[name] for name in entropies}, rel=1e-3)


def first_entropies(run):
    """Those that a run's first epoch has logged."""
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] == "0"]
    named = [(name, value) for row in rows for name, value in row.items() if re.match("entropy/(?!total)", name)]
    found = {name: float(value) for name, value in named if value}
    assert len(found) > 60
    return found


def test_features_and_predictions_travel_and_no_gradient(several):
    """Two of four groups are here: half of 6 · C · 4 · 4 features in float32, and of 6 · 4 · 10 logits."""
    *steps, _ = torch.load(several / "thin networks 0")  # after an epoch's last one weights travel
    blocks = 1 if (several / "thin networks 3").exists() else 2
    features, logits = [6 * width * 4 * 4 * 4 // 2 for width in (8, 16)], 6 * 4 * 10 * 4 // 2
    assert steps == 2 * [[number for width in features[:blocks] for number in (width, logits)]]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (partial(grouped, vgg, num_groups=1), "2 processes cannot share the 1 groups of NeuronGroups"),
        (partial(grouped, vgg, optimizer=partial(BlockLARS, lr=0.1, weight_decay=1e-4)), "BlockLARS looks at whole"),
        (partial(grouped, pre_activated), "not computed group by group"),
    ],
)
def test_what_cannot_be_shared_is_refused(make, why, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(dist, "get_rank", lambda *_: 1)
    model = make()
    model.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with pytest.raises(UsageError, match=why):
        GroupsApart(model, None, range(3)).require_groups()


def test_a_part_is_whole_again_as_it_was():
    model = METHODS["identity shortcuts"]()
    before = deepcopy(model.state_dict())
    own = OwnGroups(model.blocks[1], range(1, 2), 4, lambda x, dim: x.repeat_interleave(4, dim))
    own.narrow()
    assert model.state_dict()["blocks.1.layer1_0.conv1.weight"].shape == (2, 8, 3, 3)
    own.widen(learned=False)
    assert_equal_states(before, model.state_dict())
    assert model.blocks[1].layer1_0.downsample is None
    assert model.blocks[1].layer1_0.conv2.groups == 4


def assert_equal_states(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


def tensors_of(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
