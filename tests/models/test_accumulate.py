"""``accumulate``: several batches make one step of every block's optimizer."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from training import Batches, batches, joined, made, train

from experiments.distributed.ddp import DDP
from losses.errors import UsageError
from models.methods.backprop import Backprop
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.infopro import InfoPro
from models.methods.layerwise import Layerwise
from models.methods.loco import LoCo
from models.methods.neuron_groups import NeuronGroups
from models.methods.predsim import PredSim
from models.networks.heads.classifiers import LinearHead
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.vgg import VGG

decay = partial(StepLR, step_size=1, gamma=0.7)


def fit(model, some, tmp_path, epochs=2, **options):
    return train(model, tmp_path, Batches(some), max_epochs=epochs, limit_train_batches=1.0, **options)


@pytest.mark.parametrize(
    "make",
    [
        partial(made, Backprop),
        partial(made, DecoupledGreedy, num_blocks=3, head=LinearHead, final_head=LinearHead, clip=0.1),
        partial(made, NeuronGroups, num_blocks=2, num_groups=2, head=LinearHead),
        partial(made, Layerwise, epochs_per_block=2, head=LinearHead),
    ],
    ids=["backprop", "decoupled, clipped", "groups", "one by one"],
)
def test_batches_in_one_step_are_the_large_batch(make, tmp_path):
    data = batches(7)  # three steps: of three batches, of three, of one
    make = partial(make, scheduler=decay, scheduler_interval="step")
    several, large = make(accumulate=3), make()
    epochs = large.schedule.epochs or 2
    trainer = fit(several, data, tmp_path, epochs)
    other = fit(large, [joined(data[:3]), joined(data[3:6]), data[6]], tmp_path, epochs)
    assert (trainer.global_step, other.global_step) == (7 * epochs, 3 * epochs)
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == [o.param_groups[0]["lr"] for o in other.optimizers]
    for (name, ours), theirs in zip(several.named_parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda said, name=name: f"{name}: {said}")


WITH_BATCH_NORM = {
    BlockwiseSSL: {"expand_dim": 16, "projector": partial(BiasFreeProjector, widths=(12, 12, 10))},
    LoCo: {"expand_dim": 16, "projector": partial(BiasFreeProjector, widths=(12, 12, 10))},
    PredSim: {"beta": 0.5},
    InfoPro: {"image_mean": [0.5] * 3, "image_std": [0.2] * 3},
}


@pytest.mark.parametrize("method", WITH_BATCH_NORM)
def test_a_step_is_the_mean_of_those_of_its_batches(method, tmp_path):
    """Whatever the loss: without momentum a step is linear in the gradient."""
    small, options = partial(VGG, plan=(8, 8, "M", 16, 16)), WITH_BATCH_NORM[method]

    def trained(data):
        model = made(method, small, optimizer=partial(SGD, lr=0.1), num_blocks=2, accumulate=2, **options)
        fit(model, data, tmp_path, epochs=1)
        return model.parameters()

    one, other = batches(2)
    for both, first, second in zip(*map(trained, ([one, other], [one], [other])), strict=True):
        torch.testing.assert_close(both, (first + second) / 2)


def test_what_is_logged_is_of_batches_that_step(tmp_path):
    model, logged = made(DecoupledGreedy, num_blocks=2, head=LinearHead, accumulate=3), {}

    def note(trainer, pl_module, outputs, batch, batch_idx):
        logged[trainer.global_step] = copy.copy(model._records)

    fit(model, batches(7), tmp_path, 2, log_every_n_steps=5, callbacks=[LambdaCallback(on_train_batch_end=note)])
    # Of batches 3, 6, 7, 10, 13 and 14, at which optimizers step, those since whose last step a fifth has gone by.
    assert [step for step, records in logged.items() if records] == [6, 10]
    assert all("train/block1/grad_norm" in logged[step] for step in (6, 10))


@pytest.mark.parametrize(("every", "steps"), [(50, [3, 6]), (2, [2, 4, 6]), (0, [])])
def test_an_epoch_is_logged_once_at_least_however_short_it_is(every, steps, tmp_path):
    model, logged = made(DecoupledGreedy, num_blocks=2, head=LinearHead), []

    def note(trainer, pl_module, outputs, batch, batch_idx):
        logged.extend([trainer.global_step] if model._records else [])

    fit(model, batches(3), tmp_path, 2, log_every_n_steps=every, callbacks=[LambdaCallback(on_train_batch_end=note)])
    assert logged == steps


def test_processes_share_gradients_once_per_step(tmp_path):
    model, shared = made(Backprop, accumulate=2), []
    local_loss = model.local_loss

    def watched(*args):
        shared.append(model.trainer.model.require_backward_grad_sync)
        return local_loss(*args)

    model.local_loss = watched
    fit(model, batches(3), tmp_path, epochs=1, strategy=DDP())
    assert shared == [False, True, True]


@pytest.mark.parametrize(("option", "ours"), [("gradient_clip_val", "clip"), ("accumulate_grad_batches", "accumulate")])
def test_lightnings_own_options_are_refused_with_ours(option, ours, tmp_path):
    with pytest.raises(UsageError, match=f"leave --trainer.{option} out, and set --model.{ours}"):
        fit(made(Backprop), batches(1), tmp_path, **{option: 2})
