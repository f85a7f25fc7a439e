"""Blocks on processes of their own train bit for bit as in one process."""

import csv
import os
from functools import partial
from types import SimpleNamespace

import lightly.loss
import pytest
import torch
import torch.distributed as dist
from helpers import in_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from training import Batches, assert_same, batches, made, train

from datamodules.batch import Batch
from experiments.cli import main
from experiments.distributed import block_parallel
from experiments.distributed.block_parallel import BlockParallel
from experiments.distributed.figures import FiguresForFirst, FiguresOfOthers
from experiments.distributed.shares import cheapest_cut
from losses.errors import UsageError
from losses.processes import Sharing
from losses.winners import WinnerTakeAll
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.channel_goodness import ChannelGoodness
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.forward_forward import ForwardForward
from models.methods.forward_forward_hybrids import ForwardForwardHybrids
from models.methods.infopro import InfoPro
from models.methods.layerwise import Layerwise
from models.methods.loco import LoCo
from models.methods.neuron_groups import NeuronGroups
from models.methods.predsim import PredSim
from models.methods.self_contrastive import SelfContrastive
from models.methods.self_defined_target import SelfDefinedTarget
from models.methods.unsupervised_forward_forward import UnsupervisedForwardForward
from models.networks.goodness_vgg import GoodnessVGG
from models.networks.heads.cells import AdversarialCell
from models.networks.heads.classifiers import LinearHead
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.layers.labels import AppendedLabel
from models.networks.mlp import MLP
from models.networks.pair_layers import PairCNN, PairConv, PairMLP
from models.networks.vgg import VGG

STEPS = 5
vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
layers = partial(MLP, hidden=(12, 11, 10), batch_norm=False)
decoupled = partial(made, DecoupledGreedy, vgg, num_blocks=4, head=LinearHead)
without_labels = {
    "optimizer": partial(SGD, lr=1e-3, momentum=0.9),
    "expand_dim": 16,
    "projector": partial(BiasFreeProjector, widths=(12, 12, 10)),
}
METHODS = {
    "decoupled": decoupled,
    "a final head, clipped": partial(decoupled, final_head=LinearHead, clip=0.1, accumulate=2),
    "a schedule of epochs": partial(decoupled, scheduler=partial(StepLR, step_size=1, gamma=0.5)),
    "one by one": partial(made, Layerwise, vgg, epochs_per_block=1, head=LinearHead),
    "frozen": partial(decoupled, frozen_blocks=3),
    "groups": partial(made, NeuronGroups, vgg, num_blocks=3, num_groups=2, head=LinearHead),
    "similarity": partial(made, PredSim, vgg, num_blocks=3, beta=0.5),
    "reconstruction": partial(made, InfoPro, vgg, num_blocks=4, image_mean=[0.5] * 3, image_std=[0.2] * 3),
    "self-defined targets": partial(
        made, SelfDefinedTarget, vgg, num_blocks=3, outputs=12, target=partial(WinnerTakeAll, winners=2)
    ),
    "cells": partial(
        made, UnsupervisedForwardForward, vgg, num_blocks=3, cell=AdversarialCell, optimizer=partial(AdamW, lr=1e-3)
    ),
    "wrong labels": partial(made, ForwardForward, layers, num_blocks=3, negatives="uniform", label=AppendedLabel),
    "hybrids": partial(made, ForwardForwardHybrids, layers, num_blocks=3),
    "channels' goodness": partial(made, ChannelGoodness, partial(GoodnessVGG, plan=(10, "M", 20, 20)), num_blocks=3),
    "self-contrastive": partial(made, SelfContrastive, partial(PairMLP, hidden=[12, 10, 8])),
    "self-contrastive, paired anew": partial(
        made, SelfContrastive, partial(PairCNN, layers=[PairConv(8), PairConv(8), PairConv(8)])
    ),
    "Barlow Twins": partial(made, BlockwiseSSL, vgg, num_blocks=3, **without_labels),
    "VICReg": partial(made, BlockwiseSSL, vgg, num_blocks=3, loss=lightly.loss.VICRegLoss, **without_labels),
}


def data():
    """Five batches, the last of them smaller."""
    *whole, last = batches(STEPS)
    ((strength, a, b),) = last.views
    smaller = Batch(last.images[:4], last.labels[:4], ((strength, a[:4], b[:4]),), last.indices[:4])
    return [*whole, smaller]


def fit(make, folder, name, callbacks=(), **options):
    os.environ.pop("PL_GLOBAL_SEED", None)  # of a command in this process: only several processes begin with it again
    model = make()
    last = ModelCheckpoint(folder, name, save_on_train_epoch_end=True)
    options = {"limit_train_batches": 1.0, "enable_checkpointing": True, "use_distributed_sampler": False} | options
    options |= {"max_epochs": model.schedule.epochs or 2, "callbacks": [last, *callbacks]}
    train(model, folder, Batches(data()), **options)
    assert model.here == range(model.schedule.parts)  # whatever it was meanwhile
    assert Sharing.group is None
    return torch.load(folder / f"{name}.ckpt", weights_only=False)


def work(rank, folder, port, processes):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    seen = []
    look = LambdaCallback(on_train_epoch_end=lambda _, model: seen.extend(p.clone() for p in model.parameters()))
    for name, make in METHODS.items():
        strategy = BlockParallel(first_blocks=[1, 2, 3][:processes])
        fit(make, folder, name, callbacks=[look], devices=processes, strategy=strategy)
    torch.save([weight.detach() for weight in seen], folder / f"seen{rank}")


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    in_processes(request.param, work, folder, find_free_network_port(), request.param)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_blocks_apart_learn_bit_for_bit_as_in_one_process(name, several, tmp_path):
    theirs = torch.load(several / f"{name}.ckpt", weights_only=False)
    ours = fit(METHODS[name], tmp_path, name)
    assert ours["global_step"] == theirs["global_step"]
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    for key in ("state_dict", "optimizer_states"):
        assert_same(ours[key], theirs[key], key)


def test_all_processes_see_the_same_weights_at_the_end_of_an_epoch(several):
    first, *others = (torch.load(file) for file in sorted(several.glob("seen*")))
    for other in others:
        assert_same(first, other, "weights")


WATCHED = ("--trainer.callbacks+=OnlineProbe", "--trainer.callbacks+=OutputSignal", "--trainer.callbacks+=Entropy")
COMMANDS = {
    "decoupled_greedy/digits": ("--model.scheduler.T_max=2", *WATCHED),
    "blockwise_ssl/digits": (),
}


def command(name, folder, *options):
    quick = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1")
    run = name.replace("/", "_")
    return ["fit", f"--config={name}", f"--runs={folder}", f"--name={run}", *quick, *COMMANDS[name], *options]


def whole_runs(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    block_parallel.part_seconds = lambda model: [1.0] * 3 + [1.0 + 4 * rank] * (model.schedule.parts - 3)
    several = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=BlockParallel")
    train_all(folder, *several)


def train_all(folder, *options):
    """Train by the commands, and by one that stops within the second epoch, and one that goes on with its rest."""
    for name in COMMANDS:
        main(command(name, folder, *options))
    stopped = command("blockwise_ssl/digits", folder, *options, "--name=stopped")
    for more in (("--trainer.max_steps=4",), ("--trainer.max_epochs=4", "--ckpt_path=last")):
        os.environ.pop("LOCAL_LEARNING_RUN_FOLDER", None)  # that of the run before, whose process this was, too
        main([*stopped, *more])


def figures(folder, name):
    """Step and metric → value, but for times; every row of metrics.csv has a step."""
    with (folder / name.replace("/", "_") / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(int(row["step"]), key): float(value) for row in rows for key, value in row.items() if value}
    return {key: value for key, value in found.items() if key[1] not in ("step", "epoch", "train/images_per_second")}


def test_a_run_of_two_processes_writes_the_figures_of_one(tmp_path):
    (tmp_path / "two").mkdir()
    in_processes(2, whole_runs, tmp_path / "two", find_free_network_port())
    train_all(tmp_path / "one")
    for name in (*COMMANDS, "stopped"):
        ours, theirs = figures(tmp_path / "one", name), figures(tmp_path / "two", name)
        assert any(key.startswith("train/block4/") for _, key in ours)
        assert any(key.startswith("probe_online/block4") for _, key in ours)
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-7, nan_ok=True)


def send_halves(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    strategy = BlockParallel(first_blocks=[1, 3], wire="bfloat16")
    fit(METHODS["decoupled"], folder, "halves", devices=2, strategy=strategy)


def test_in_half_precision_later_blocks_learn_nearly_the_same(tmp_path):
    in_processes(2, send_halves, tmp_path, find_free_network_port())
    theirs = torch.load(tmp_path / "halves.ckpt", weights_only=False)["state_dict"]
    ours = fit(METHODS["decoupled"], tmp_path, "ours")["state_dict"]
    for name, value in ours.items():
        before = name.split(".")[1] in "01"
        assert torch.equal(value, theirs[name]) == (before or "num_batches" in name), name
        torch.testing.assert_close(value, theirs[name], rtol=0.2, atol=0.02)


def test_the_first_process_logs_and_shows_what_others_have_left():
    store, model, logged = dist.HashStore(), SimpleNamespace(latest={"train/block1/loss": 2.0}), []
    logger = SimpleNamespace(log_metrics=lambda row, step: logged.append((step, row)))
    first, second = FiguresOfOthers(store, [1], [logger], model), FiguresForFirst(store, 1, ["train/block2/"])
    strategy = BlockParallel()
    strategy._figures = first
    for step, look in ((4, partial(first.log_metrics, {})), (9, strategy.on_train_end)):
        second.log_metrics({"train/block2/loss": step / 2, "train/images_per_second": 7.0}, step)
        look()
    assert logged == [(4, {"train/block2/loss": 2.0}), (9, {"train/block2/loss": 4.5})]
    assert model.latest == {"train/block1/loss": 2.0, "train/block2/loss": 4.5}


@pytest.mark.parametrize(("method", "why"), [(LoCo, "learn in pairs"), (DecoupledGreedy, "are 1:")])
def test_what_cannot_be_shared_is_refused(method, why, monkeypatch):
    strategy = BlockParallel()
    monkeypatch.setattr(BlockParallel, "world_size", 2)
    monkeypatch.setattr(BlockParallel, "global_rank", 0)
    options = {} if method is LoCo else {"num_blocks": 1, "head": LinearHead}
    strategy._lightning_module = made(method, vgg, **options)
    with pytest.raises(UsageError, match=f"2 processes cannot share the blocks of {method.__name__}, which {why}"):
        strategy.configure_ddp()


def test_lines_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.setattr(BlockParallel, "world_size", 3)
    with pytest.raises(UsageError, match="2 × 1, must divide the number of processes, 3"):
        BlockParallel(replicas=2).setup(None)
    monkeypatch.setattr(BlockParallel, "world_size", 2)
    monkeypatch.setattr(BlockParallel, "global_rank", 0)
    strategy = BlockParallel()
    loss = partial(lightly.loss.NTXentLoss, gather_distributed=True)
    strategy._lightning_module = made(BlockwiseSSL, vgg, num_blocks=3, loss=loss, **without_labels)
    with pytest.raises(UsageError, match="gather_distributed gathers from all processes"):
        strategy.configure_ddp()


def test_processes_of_a_line_load_the_same_part_of_the_images(monkeypatch):
    monkeypatch.setattr(BlockParallel, "world_size", 8)
    strategy, parts = BlockParallel(replicas=2, groups_apart=2), []
    for rank in range(8):
        monkeypatch.setattr(BlockParallel, "global_rank", rank)
        parts.append(strategy.distributed_sampler_kwargs)
    assert parts == [{"num_replicas": 2, "rank": line} for line in 4 * [0] + 4 * [1]]


@pytest.mark.parametrize(
    ("seconds", "processes", "starts"),
    [([3, 1, 1, 1], 2, [0, 1]), ([1, 1, 1, 3], 2, [0, 3]), ([1, 2, 3, 4, 5], 3, [0, 3, 4]), ([1, 1], 2, [0, 1])],
)
def test_the_slowest_process_is_as_fast_as_can_be(seconds, processes, starts):
    assert cheapest_cut(seconds, processes) == starts


def test_a_final_head_goes_with_the_last_block(monkeypatch):
    """However long it takes on a machine that others keep busy."""
    monkeypatch.setattr(block_parallel, "part_seconds", lambda model: [1.0, 1.0, 9.0])
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    strategy = SimpleNamespace(first_blocks=None, root_device=torch.device("cpu"), stages=2)
    model = SimpleNamespace(num_blocks=2, schedule=SimpleNamespace(parts=3))
    assert BlockParallel._shares(strategy, model) == [range(1), range(1, 3)]
