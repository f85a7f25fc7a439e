"""Several processes train several blocks: each with its part of every batch, to the weights of one process with all."""

import os
from functools import partial

import lightly.loss
import pytest
import torch
import torch.distributed as dist
from helpers import in_two_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from training import Batches, batches, made, train

from datamodules.batch import Batch
from experiments.distributed.ddp import DDP
from losses import SubsampledNTXent
from losses.processes import gathered
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.layerwise import Layerwise
from models.methods.loco import LoCo
from models.methods.neuron_groups import NeuronGroups
from models.methods.predsim import PredSim
from models.networks.heads.classifiers import LinearHead
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.heads.expansion import ConvExpansion
from models.networks.heads.pooling import GlobalPooling
from models.networks.vgg import VGG

STEPS = 4
plain_vgg = partial(VGG, plan=(8, 8, "M", 16, 16))


def without_labels(method, loss, **options):
    projector = partial(nn.Linear, out_features=10)
    return partial(made, method, loss=loss, pooling=GlobalPooling, projector=projector, num_blocks=3, **options)


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
}


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


def work(rank, folder, port):
    """One of the two processes: its weights after training by each method, and the bytes that it sent."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    reduce, sent = dist.all_reduce, []

    def counted(tensor, *args, async_op=False, **options):
        sent.extend([tensor.nbytes] if async_op else [])  # Lightning's own are waited for
        return reduce(tensor, *args, async_op=async_op, **options)

    dist.all_reduce = counted
    data = [part(batch, rank) for batch in batches(STEPS)]
    for name, make in METHODS.items():
        sent.clear()
        model = fit(make, folder, data, devices=2, strategy=DDP(), use_distributed_sampler=False, sync_batchnorm=True)
        torch.save((model.state_dict(), list(sent)), folder / f"{name}{rank}")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    in_two_processes(work, folder, find_free_network_port())
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_as_one_does_with_the_whole_batch(name, both, tmp_path):
    ours, theirs = ((torch.load(both / f"{name}{rank}")[0]) for rank in range(2))
    alone = fit(METHODS[name], tmp_path, batches(STEPS))
    before = METHODS[name]()
    for key, value in alone.state_dict().items():
        assert torch.equal(ours[key], theirs[key]), key
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")
    moved = [name for name, value in before.named_parameters() if name in ours and not torch.equal(value, ours[name])]
    assert len(moved) > len(ours) / 2


def test_every_gradient_is_sent_once_a_step(both):
    _, sent = torch.load(both / "decoupled, clipped0")
    sizes = [sum(p.nbytes for p in METHODS["decoupled, clipped"]().block_parameters(k)) for k in range(4)]
    assert sent == STEPS * sizes
    _, sent = torch.load(both / "accumulated0")
    assert len(sent) == STEPS // 2 * 2


def test_one_process_gathers_nothing():
    rows = torch.ones(3, 2)
    assert gathered(rows) is rows
