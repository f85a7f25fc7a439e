"""Blocks on processes of their own that learn one after the other from stored features, bit for bit as in one."""

import os
from functools import partial

import pytest
import torch
from helpers import in_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from training import assert_same, make_sgd, train

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.distributed.block_parallel import BlockParallel
from models.methods.layerwise import Layerwise
from models.networks.heads.classifiers import LinearHead
from models.networks.vgg import VGG
from models.parts.feature_store import FeatureStore
from models.parts.regularization import Regularization

EPOCHS = [1, 2, 2, 1]
SIZES = {2: {}, 3: {3: 600}}
STEPS = {2: 24, 3: 21}
EVERY = {2: 6, 3: 7}
"""Steps between checkpoints, so that two of three are made within an epoch."""
FIRST_BLOCKS = {2: [1, 3], 3: [1, 2, 4]}


def fit(folder, processes, seed=0, store=None, resume=None, watch=(), **options):
    """Train four blocks one after the other, as so many processes do; checkpoints in the folder."""
    torch.manual_seed(seed)
    store = FeatureStore(passes=2, folder=store and str(store))
    regularization = Regularization(input_dropout=0.1, input_noise=0.1, overparameterize=2)
    network = partial(VGG, plan=(8, 8, "M", 16, 16))
    options = {"enable_checkpointing": True, "use_distributed_sampler": False} | options
    settings = {"optimizer": make_sgd, "head": LinearHead, "regularization": regularization, "store": store}
    model = Layerwise(network, (1, 8, 8), 10, epochs_per_block=EPOCHS, **settings)
    data = Digits(batch_size=400, batch_sizes=SIZES[processes], augment=Augment(pad=1))
    saved = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=EVERY[processes])
    train(model, folder, data, [saved, *watch], resume, max_epochs=sum(EPOCHS), limit_train_batches=1.0, **options)
    return model


def work(rank, folder, port, processes):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    stored = []

    def look(trainer, model):
        stored.append(model._inputs.blocks)

    options = {"devices": processes, "strategy": BlockParallel(first_blocks=FIRST_BLOCKS[processes])}
    fit(folder / "whole", processes, watch=[LambdaCallback(on_train_epoch_end=look)], **options)
    torch.save(stored, folder / f"stored{rank}.pt")
    options["strategy"] = BlockParallel(first_blocks=FIRST_BLOCKS[processes])
    before_last = folder / "whole" / f"step={STEPS[processes] - EVERY[processes]}.ckpt"
    fit(folder / "resumed", processes, 7, folder / "store", before_last, **options)


@pytest.mark.parametrize(
    ("processes", "stored"),
    [(2, [[0, 1, 1, 0, 0, 0], [0, 0, 0, 2, 2, 3]]), (3, [[0] * 6, [0, 1, 1, 2, 2, 0], [0, 0, 0, 0, 0, 3]])],
)
def test_stored_features_are_kept_where_their_block_learns(processes, stored, tmp_path):
    in_processes(processes, work, tmp_path, find_free_network_port(), processes)
    assert [torch.load(tmp_path / f"stored{rank}.pt") for rank in range(processes)] == stored
    fit(tmp_path / "alone", processes)
    fit(tmp_path / "back", processes, 7, resume=tmp_path / "whole" / f"step={EVERY[processes]}.ckpt")
    last = f"step={STEPS[processes]}.ckpt"
    for name in ("whole", "resumed", "back"):
        ours, theirs = (torch.load(tmp_path / of / last, weights_only=False) for of in ("alone", name))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_same(ours[key], theirs[key], key)
    assert not os.listdir(tmp_path / "store")
