"""Replicas, and lines of processes with blocks apart: with parts of every batch, to the weights of one process."""

import os
from functools import partial

import lightly.loss
import pytest
import torch
import torch.distributed as dist
from helpers import in_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from training import CLASSES, Batches, batches, made, train

from datamodules.batch import Batch
from experiments.distributed.block_parallel import BlockParallel
from experiments.distributed.ddp import DDP
from experiments.measure.traffic import Sent
from losses import SubsampledNTXent
from losses.processes import gathered
from losses.winners import WinnerTakeAll
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.channel_goodness import ChannelGoodness
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.deep_supervision import DeepSupervision
from models.methods.forward_forward import ForwardForward
from models.methods.layerwise import Layerwise
from models.methods.loco import LoCo
from models.methods.man import MAN
from models.methods.neuron_groups import NeuronGroups
from models.methods.overlapping_greedy import OverlappingGreedy
from models.methods.predsim import PredSim
from models.methods.self_defined_target import SelfDefinedTarget
from models.methods.unsupervised_forward_forward import UnsupervisedForwardForward
from models.networks.goodness_vgg import GoodnessVGG
from models.networks.heads.cells import AdversarialCell
from models.networks.heads.classifiers import LinearHead
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.heads.expansion import ConvExpansion
from models.networks.heads.pooling import GlobalPooling
from models.networks.layers.labels import AppendedLabel
from models.networks.mlp import MLP
from models.networks.vgg import VGG

STEPS = 4
plain_vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
layers = partial(MLP, hidden=(12, 11, 10), batch_norm=False)


def without_labels(method, loss, **options):
    projector = partial(nn.Linear, out_features=10)
    return partial(made, method, loss=loss, pooling=GlobalPooling, projector=projector, num_blocks=3, **options)


class NextLabels(ForwardForward):
    """Forward-Forward whose wrong labels are drawn by nobody, and so alike in all processes."""

    def step_input(self, batch):
        if batch.arrived:
            return batch.arrived
        contrast = self._contrast(batch, (batch.labels + 1) % CLASSES)
        return 0, contrast._replace(neutral=self.neutral(batch.images))


METHODS = {
    "decoupled, clipped": partial(
        made, DecoupledGreedy, num_blocks=3, head=LinearHead, final_head=LinearHead, clip=0.1
    ),
    "a schedule of steps": partial(
        made,
        DecoupledGreedy,
        num_blocks=2,
        head=LinearHead,
        scheduler=partial(StepLR, step_size=1, gamma=0.5),
        scheduler_interval="step",
    ),
    "accumulated": partial(made, DecoupledGreedy, num_blocks=2, head=LinearHead, accumulate=2),
    "groups": partial(made, NeuronGroups, num_blocks=2, num_groups=2, head=LinearHead),
    "one by one": partial(made, Layerwise, epochs_per_block=1, head=LinearHead),
    "similarity": partial(made, PredSim, num_blocks=3, beta=0.5),
    "self-defined targets": partial(
        made, SelfDefinedTarget, plain_vgg, num_blocks=2, outputs=12, target=partial(WinnerTakeAll, winners=2)
    ),
    "cells": partial(
        made, UnsupervisedForwardForward, num_blocks=3, cell=AdversarialCell, optimizer=partial(AdamW, lr=1e-3)
    ),
    "wrong labels": partial(made, NextLabels, layers, num_blocks=3, negatives="uniform", label=AppendedLabel),
    "channels' goodness": partial(made, ChannelGoodness, partial(GoodnessVGG, plan=(10, "M", 20, 20)), num_blocks=2),
    "SimCLR": without_labels(BlockwiseSSL, lightly.loss.NTXentLoss),
    "SimCLR, gathered by lightly": without_labels(
        BlockwiseSSL, partial(lightly.loss.NTXentLoss, gather_distributed=True)
    ),
    "SimCLR, similar negatives": without_labels(
        BlockwiseSSL, partial(SubsampledNTXent, negatives=4, choice="most_similar")
    ),
    "Barlow Twins": without_labels(BlockwiseSSL, lightly.loss.BarlowTwinsLoss, optimizer=partial(SGD, lr=1e-3)),
    "VICReg": without_labels(BlockwiseSSL, lightly.loss.VICRegLoss),
    "Barlow Twins, BatchNorm synchronised": partial(
        made,
        BlockwiseSSL,
        plain_vgg,
        optimizer=partial(SGD, lr=1e-3),
        num_blocks=2,
        expand_dim=32,
        pooling=partial(ConvExpansion, piece_mib=0.01),
        projector=partial(BiasFreeProjector, widths=(12, 12, 10)),
        loss=lightly.loss.BarlowTwinsLoss,
    ),
    "LoCo": without_labels(LoCo, lightly.loss.NTXentLoss),
    "overlapping": partial(made, OverlappingGreedy, num_blocks=3, head=LinearHead),
    "momentum heads": partial(made, MAN, partial(plain_vgg, batch_norm=False), num_blocks=3, head=LinearHead),
    "nothing detached": partial(made, DeepSupervision, num_blocks=3, head=LinearHead),
}

TOGETHER = "LoCo", "SimCLR, gathered by lightly", "overlapping", "momentum heads", "nothing detached"


def part(batch, rank):
    """Every other image."""
    half = slice(rank, None, 2)
    ((strength, a, b),) = batch.views
    return Batch(batch.images[half], batch.labels[half], ((strength, a[half], b[half]),), batch.indices[half])


def fit(make, folder, data, **options):
    model = make()
    epochs = model.schedule.epochs or 1
    train(model, folder, Batches(data), max_epochs=epochs, limit_train_batches=1.0, **options)
    return model


def work(rank, folder, port, processes):
    """One of the processes: its weights after training by each method, and the bytes that it sent to be averaged."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    reduce, sent = dist.all_reduce, []

    def counted(tensor, *args, async_op=False, **options):
        sent.extend([tensor.nbytes] if async_op else [])  # Lightning's own are waited for
        return reduce(tensor, *args, async_op=async_op, **options)

    dist.all_reduce = counted
    data = [part(batch, rank * 2 // processes) for batch in batches(STEPS)]
    for name in trained_by(processes):
        sent.clear()
        strategy = DDP() if processes == 2 else BlockParallel([1, 2], replicas=2)
        options = {"devices": processes, "strategy": strategy, "use_distributed_sampler": False, "sync_batchnorm": True}
        model = fit(METHODS[name], folder, data, **options)
        torch.save((model.state_dict(), list(sent)), folder / f"{name}{rank}")
    if processes == 2:
        model.register_buffer("statistics", torch.full((3,), float(rank)))
        with Sent() as counter:
            strategy.on_validation_start()
        size = sum(buffer.nbytes for buffer in model.buffers())
        torch.save((model.statistics, counter.bytes["broadcast_"] / size), folder / f"judged{rank}")


def trained_by(processes):
    """Replicas train all; of lines of two blocks learn apart."""
    return [name for name in METHODS if processes == 2 or name not in TOGETHER]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folders = {processes: tmp_path_factory.mktemp(f"by{processes}") for processes in (2, 4)}
    for processes, folder in folders.items():
        in_processes(processes, work, folder, find_free_network_port(), processes)
    return folders


@pytest.mark.parametrize(("processes", "name"), [(count, name) for count in (2, 4) for name in trained_by(count)])
def test_several_processes_train_as_one_does_with_the_whole_batch(processes, name, trained, tmp_path):
    ours, *others = (torch.load(trained[processes] / f"{name}{rank}")[0] for rank in range(processes))
    alone = fit(METHODS[name], tmp_path, batches(STEPS))
    before = METHODS[name]()
    for key, value in alone.state_dict().items():
        assert all(torch.equal(ours[key], theirs[key]) for theirs in others), key
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")
    known = {name: value for name, value in before.named_parameters() if name in ours}
    assert not [name for name, value in known.items() if torch.equal(value, ours[name])]


def test_replicas_are_judged_with_the_statistics_that_the_first_sends(trained):
    for rank, sent in enumerate((1, 0)):
        statistics, found = torch.load(trained[2] / f"judged{rank}")
        assert statistics.tolist() == [0, 0, 0]
        assert found == sent


def test_every_gradient_is_sent_once_a_step(trained):
    sent = {by: torch.load(trained[by[0]] / f"decoupled, clipped{by[1]}")[1] for by in ((2, 0), (4, 0), (4, 1))}
    sizes = [sum(p.nbytes for p in METHODS["decoupled, clipped"]().block_parameters(k)) for k in range(4)]
    assert sent == {(2, 0): STEPS * sizes, (4, 0): STEPS * sizes[:1], (4, 1): STEPS * sizes[1:]}
    _, sent = torch.load(trained[2] / "accumulated0")
    assert len(sent) == STEPS // 2 * 2


def test_one_process_gathers_nothing():
    rows = torch.ones(3, 2)
    assert gathered(rows) is rows
