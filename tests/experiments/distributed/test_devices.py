"""Configs of several processes, laid over those of one: two processes train so, on tiny images in files."""

import os
import re
import shlex

import pytest
import torch
from fake_data import write_data_set
from helpers import DEVICES, head_of, in_two_processes, name_of
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.folders import StreamedImages
from experiments import local_learning_cli
from experiments.distributed.batch_norm import SyncBatchNorm, SyncedBatchNorm
from experiments.local_learning_cli import LocalLearningCLI
from experiments.named_configs import with_config_files
from models.methods.blockwise_ssl import BlockwiseSSL
from models.networks.memory.profile import profile

SMALL = (
    "--trainer.accelerator=cpu",
    "--trainer.devices=2",
    "--trainer.num_nodes=1",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--data.batch_size=4",
    "--data.image_size=32",
    "--data.num_workers=0",
    "--model.projector.init_args.widths=[16,16,16]",
    "--model.expand_dim=512",
    "--model.pooling.piece_mib=0.01",  # so that, as at 224 pixels, no expanded map is kept
    "--model.scheduler.warmup_start_value=0.1",  # the published one begins with a step of rate 0
)


def command_of(config):
    """The command at its head, without the method's name."""
    [command] = re.findall(r"^#   local-learning (fit [^#\n]+)", head_of(config), re.MULTILINE)
    return shlex.split(command)


def work(rank, folder, root, port, command):
    """One of the two processes: what it trained on, and to which weights."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    read, compared, layers, before = [], [], set(), []
    picture, pair_loss = StreamedImages.picture, BlockwiseSSL.pair_loss

    def reading(self, index):
        read.append(self.file(index))
        return picture(self, index)

    def comparing(self, k, z_a, z_b, features):
        compared.append(z_a.detach().clone())
        before.extend([] if before else [{name: p.clone() for name, p in self.named_parameters()}])
        layers.update(type(layer) for layer in self.modules() if isinstance(layer, _BatchNorm))
        return pair_loss(self, k, z_a, z_b, features)

    StreamedImages.picture, BlockwiseSSL.pair_loss = reading, comparing
    local_learning_cli.locality = lambda model, data: {}  # whose copies would be watched, too
    cli = LocalLearningCLI([*with_config_files(command), f"--runs={folder}", f"--data.root={root}", *SMALL])
    assert cli.trainer.global_step == 2
    assert layers == {SyncBatchNorm}
    assert not [name for name, p in cli.model.named_parameters() if torch.equal(p, before[0][name])]
    torch.save((cli.model.state_dict(), read, compared), folder / f"{rank}.pt")


@pytest.mark.parametrize("config", DEVICES, ids=name_of)
def test_two_processes_train_as_sixteen_would(config, tmp_path, monkeypatch):
    root = write_data_set("ImageNet", tmp_path / "data", monkeypatch)
    in_two_processes(work, tmp_path, root, find_free_network_port(), command_of(config))
    (ours, our_files, our_rows), (theirs, their_files, their_rows) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert len(our_files) == len(their_files) == 2 * 4
    assert len({*our_files, *their_files}) == 2 * 8  # each image is read by one process
    assert len(our_rows) == len(their_rows) == 2 * 4
    for rows, same in zip(our_rows, their_rows, strict=True):  # the losses of all blocks see the whole batch
        assert len(rows) == 2 * 4
        assert torch.equal(rows, same)


def test_synchronised_batch_norm_costs_as_much():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    synchronised = SyncedBatchNorm().apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    [(one, _)], [(other, _)] = profile([plain], (3, 8, 8)), profile([synchronised], (3, 8, 8))
    assert type(synchronised[1]) is SyncBatchNorm
    assert (one.forward_macs, [*one.saved.values()]) == (other.forward_macs, [*other.saved.values()])
